"""Runs that leave no trace: what a forward stores on its modules and writes to memory that outlives it is put back."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_map_only


@contextmanager
def attributes_kept(
    model: nn.Module, stored: Callable[[nn.Module, list[Any]], None] = lambda module, values: None
) -> Iterator[None]:
    """Undo what a forward stores on its modules; ``stored`` is shown each module and the values that it was given."""
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(module, dict(module.__dict__), dict(module._buffers)) for module in modules]
    try:
        yield
        for module, attributes, _ in before:
            stored(
                module, [value for key, value in module.__dict__.items() if attributes.get(key) is not value]
            )
    finally:
        for module, attributes, buffers in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def copied(tree: Any) -> Any:
    """Nested arguments with a copy of every tensor, for a run that may write to them."""
    return tree_map_only(Tensor, Tensor.clone, tree)


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
