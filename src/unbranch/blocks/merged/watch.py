"""Whether modules are still what they were when they were read, at less than the price of reading them again."""

from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor, nn

from unbranch.blocks.merged.terms import hooks_of


class Watched:
    """The attributes of some modules without hooks, by identity, and the types, devices and shapes of their tensors.

    Tensors that are written to, as an optimizer does, are the same; parameters that another tensor was put in the place of are not, nor
    those whose ``data`` was cast, nor a module that got another class, a hook or a forward of its own. ``children`` is whose modules they
    are: not the owner itself, which would live for as long as its watch.
    """

    def __init__(self, children: dict[str, Any], modules: Sequence[nn.Module]) -> None:
        self._modules = tuple(modules)
        self._parts = [children, *(part for module in modules for part in _parts(module))]
        self._hooks = [hooks for module in modules for hooks in hooks_of(module)]
        values = [value for part in self._parts for value in part.values()]
        self._tensors = [value for value in values if isinstance(value, Tensor)]
        self._lists = [value for value in values if isinstance(value, list)]
        self._objects, self._facts = self._read()

    def unchanged(self) -> bool:
        """Whether reading the modules again would find the same."""
        if any(self._hooks):
            return False
        objects, facts = self._read()
        return (
            len(objects) == len(self._objects)
            and all(map(is_, objects, self._objects))
            and facts == self._facts
        )

    def _read(self) -> tuple[list[object], list[object]]:
        """Classes and values, which stay the very same; and how many values each part has, what is in lists and what tensors are like."""
        values = chain.from_iterable(map(dict.values, self._parts))
        facts: list[object] = [fact for t in self._tensors for fact in (t.dtype, t.device, t.shape)]
        counts: list[object] = [*map(len, self._parts), *map(tuple, self._lists)]
        return [*map(type, self._modules), *values], counts + facts


def _parts(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """All that a module holds, by name."""
    return vars(module), module._parameters, module._buffers, module._modules
