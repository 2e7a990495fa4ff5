"""The one error of this package, and how a long list of keys is said in a line."""

from collections import Counter
from collections.abc import Iterable

_GROUPS = 6


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded as it stands; the model is untouched.

    The message is one line. ``missing`` (names of the model), ``left_over`` (names of the file) and
    ``mismatched`` (names of the model) hold the keys in full.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: tuple[str, ...] = (),
        left_over: tuple[str, ...] = (),
        mismatched: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.left_over = left_over
        self.mismatched = mismatched


def summary(keys: Iterable[str]) -> str:
    """The keys in a few groups: each group is a common beginning with its count, a single key is itself.

    >>> summary(["head.weight", "head.bias", "stem.conv.weight"])
    'head.* (2), stem.conv.weight'
    """
    keys = list(keys)
    depth = 1
    groups = _grouped(keys, depth)
    while len(finer := _grouped(keys, depth + 1)) <= _GROUPS and finer != groups:
        groups, depth = finer, depth + 1
    shown = [
        key if count == 1 and key in keys else f"{key}.* ({count})"
        for key, count in groups.most_common(_GROUPS)
    ]
    rest = len(groups) - len(shown)
    return ", ".join(shown) + (f" and {rest} more groups" if rest > 0 else "")


def _grouped(keys: list[str], depth: int) -> Counter[str]:
    return Counter(".".join(parts[:depth]) if len(parts := key.split(".")) > depth else key for key in keys)
