"""Networks by name."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from torch import nn

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register(name: str, builder: Callable[..., nn.Module]) -> None:
    """Let ``create(name)`` call ``builder``. Raises ValueError for a name that is taken."""
    if name in _BUILDERS:
        raise ValueError(f"a network named {name!r} is registered already")
    _BUILDERS[name] = builder


def names() -> tuple[str, ...]:
    """All names, in the order they were registered."""
    return tuple(_BUILDERS)


def create(name: str, **options: Any) -> nn.Module:
    """The network of that name, freshly initialised; the options are its builder's own.

    Every classifier takes ``num_classes``, ``in_channels`` and ``out_indices``. Raises ValueError for an
    unknown name, with the nearest ones, and TypeError for an option that the network does not have.

    >>> create("repvgg_a0", num_classes=10)(torch.ones(1, 3, 64, 64)).shape
    torch.Size([1, 10])
    """
    if name not in _BUILDERS:
        near = get_close_matches(name.lower().replace("-", "_"), _BUILDERS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(_BUILDERS)}"
        raise ValueError(f"there is no network named {name!r}; {hint}")
    return _BUILDERS[name](**options)
