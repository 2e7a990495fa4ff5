"""What a run of a network does, counted by watching it: ops that compute or copy, of those that the outputs need."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SEARCHES = ("topk", "sort", "nms", "argmax", "nonzero")
"""Ops whose result jumps when rounding swaps two near values."""

LAYERS = ("convolution", "batch_norm")


class Counter(TorchDispatchMode):
    """Watches a run. An op is one bit; each storage carries the bits of the ops that its content came through.

    A view moves nothing and is no op; writing in place is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._came: dict[int, int] = {}
        self._kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the op and note it."""
        result = func(*args, **(kwargs or {}))
        taken = {_place(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = {_place(t): t for t in tree_leaves(result) if isinstance(t, Tensor)}
        writes = func._schema.is_mutable
        if made and (writes or not set(made) <= set(taken)):
            came = 1 << len(self.names)
            self.names.append(str(func))
            for place in taken:
                came |= self._came.get(place, 0)
            self._came |= dict.fromkeys(made, came)
            self._kept += made.values()  # a storage that is freed gives its number to another
        return result

    def release(self) -> None:
        """Let go of what was kept for the run's sake."""
        self._kept.clear()

    def came_through(self, tensor: Tensor) -> list[str]:
        """The ops that this tensor needed."""
        return self.needed([tensor])

    def needed(self, tensors: list[Tensor]) -> list[str]:
        """The ops that any of these tensors needed."""
        bits = 0
        for tensor in tensors:
            bits |= self._came.get(_place(tensor), 0)
        return [name for number, name in enumerate(self.names) if bits >> number & 1]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def counted(run: Callable[[], Mapping[str, Tensor]]) -> tuple[Counter, Mapping[str, Tensor]]:
    """One run, watched, and its outputs; another run goes first, since some networks keep what their first run computes."""
    run()
    with torch.no_grad(), Counter() as counter:
        outputs = run()
    counter.release()
    return counter, outputs


def is_searched(counter: Counter, tensor: Tensor) -> bool:
    """Its order or choice comes from comparing values."""
    return any(search in name for name in counter.came_through(tensor) for search in SEARCHES)


def layers(names: list[str]) -> int:
    """How many of the ops are convolutions or norms."""
    return sum(any(layer in name for layer in LAYERS) for name in names)
