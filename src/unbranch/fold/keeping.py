"""Runs that leave no trace: what a forward stores on its modules and writes to memory that outlives it is put back."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_map_only

_OWN = frozenset(vars(nn.Module()))
"""What every module has, such as its hooks; its parameters, buffers and children are looked at by themselves."""

_REGISTERED = ("_parameters", "_buffers", "_modules")
_DEPTH = 3


class _State:
    """What a module, a container or a plain object holds: its attributes or entries, as they were."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self.before = _entries(held)

    def changes(self) -> list[Any]:
        """The entries that were not there, or were others."""
        now = _entries(self.held)
        if isinstance(now, dict) and isinstance(self.before, dict):
            return [value for key, value in now.items() if self.before.get(key, self) is not value]
        kept = {id(value) for value in self.before}
        return [value for value in now if id(value) not in kept]

    def restore(self) -> None:
        """As it was."""
        now, before = _entries(self.held), self.before
        if isinstance(before, dict) and isinstance(now, dict):
            if now.keys() != before.keys() or any(now[key] is not before[key] for key in before):
                inner = self.held if isinstance(self.held, dict) else vars(self.held)
                inner.clear()
                inner.update(before)
        elif len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
            self.held.clear()
            (self.held.update if isinstance(self.held, set) else self.held.extend)(before)


def _entries(held: Any) -> dict[Any, Any] | list[Any]:
    if isinstance(held, list | set | deque):
        return list(held)
    return dict(held if isinstance(held, dict) else vars(held))


def _states(module: nn.Module) -> Iterator[_State]:
    """Of the module, and of what it holds beside other modules, some levels deep."""
    yield _State(module)
    rest = [(value, _DEPTH) for key, value in vars(module).items() if key not in _OWN]
    yield from (_State(vars(module)[name]) for name in _REGISTERED)
    seen: set[int] = set()
    while rest:
        held, depth = rest.pop()
        if id(held) in seen or not depth or not _changeable(held):
            continue
        seen.add(id(held))
        state = _State(held)
        yield state
        values = state.before.values() if isinstance(state.before, dict) else state.before
        rest += [(value, depth - 1) for value in values]


def _changeable(held: Any) -> bool:
    """A container, or a plain object of somebody's own class."""
    if isinstance(held, list | dict | set | deque):
        return True
    kind = type(held)
    plain = not isinstance(held, nn.Module | Tensor | type | ModuleType | FunctionType | MethodType)
    return (
        plain and kind.__module__.partition(".")[0] not in ("builtins", "torch") and kind.__dictoffset__ != 0
    )


@contextmanager
def attributes_kept(
    model: nn.Module, stored: Callable[[nn.Module, list[Any]], None] = lambda module, values: None
) -> Iterator[None]:
    """Undo what a forward stores on its modules; ``stored`` is shown each module and the values that it was given."""
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(module, list(_states(module))) for module in modules]
    try:
        yield
        for module, states in before:
            stored(module, [value for state in states for value in state.changes()])
    finally:
        for _, states in before:
            for state in states:
                state.restore()


def copied(tree: Any) -> Any:
    """Nested arguments with a copy of every tensor and container, for a run that may write to them."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), tree)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a run writes to the buffers, by copies of them all."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in before:
                buffer.copy_(old)


class Writes:
    """Copies, just before a write, of memory that outlives a run: what is never written to is never copied."""

    def __init__(self, lasting: Callable[[], Iterable[Tensor]]) -> None:
        """``lasting`` lists the tensors whose memory is to be as it was; it is asked once there is a write."""
        self._tensors = lasting
        self.before: list[tuple[Tensor, Tensor]] = []

    @cached_property
    def lasting(self) -> set[StorageWeakRef]:
        """The memory."""
        return {StorageWeakRef(t.untyped_storage()) for t in self._tensors() if t.layout is torch.strided}

    def expect(self, targets: Sequence[Tensor]) -> None:
        """These tensors are about to be written to."""
        for tensor in targets:
            if tensor.layout is torch.strided and StorageWeakRef(tensor.untyped_storage()) in self.lasting:
                self.before.append((tensor, tensor.clone()))

    def undo(self) -> None:
        """Put everything back, the last write first."""
        with torch.inference_mode():
            while self.before:
                tensor, old = self.before.pop()
                tensor.copy_(old)


__all__ = ["Writes", "attributes_kept", "buffers_kept", "copied"]
