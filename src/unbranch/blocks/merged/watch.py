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
    are.
    """

    def __init__(self, children: dict[str, nn.Module | None], modules: Sequence[nn.Module]) -> None:
        self._modules = tuple(modules)
        named = [part for m in modules for part in (m._parameters, m._buffers, m._modules)]
        self._named: list[dict[str, Any]] = [children, *named]
        self._parts: list[dict[str, Any]] = [*self._named, *map(vars, modules)]
        self._hooks = [hooks for module in modules for hooks in hooks_of(module)]
        values = [value for part in self._parts for value in part.values()]
        self._tensors = [value for value in values if isinstance(value, Tensor)]
        self._lists = [value for value in values if isinstance(value, list)]
        self._objects, self._facts = self._read()

    def unchanged(self, children: dict[str, nn.Module | None]) -> bool:
        """Whether reading the modules again would find the same; they are those of ``children`` now."""
        if any(self._hooks) or children is not self._named[0]:
            return False
        objects, facts = self._read()
        return (
            len(objects) == len(self._objects)
            and all(map(is_, objects, self._objects))
            and facts == self._facts
        )

    def _read(self) -> tuple[list[object], list[object]]:
        """What stays the very same: classes, parts, names and values; and of what each part has how many, and what tensors are like."""
        objects = [
            *map(type, self._modules),
            *map(vars, self._modules),
            *chain.from_iterable(self._named),
            *chain.from_iterable(map(dict.values, self._parts)),
            *chain.from_iterable(self._lists),
        ]
        facts: list[object] = [fact for t in self._tensors for fact in (t.dtype, t.device, t.shape)]
        return objects, [*map(len, self._parts), *map(len, self._lists), *facts]
