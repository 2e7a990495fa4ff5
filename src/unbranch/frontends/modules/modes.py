"""What shows a recorder the calls of torch that a forward makes, and the ATen ops that they run."""

import sys
from typing import Any, Protocol, no_type_check

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from unbranch.frontends.modules.numbers import Place, place_of

unseen = torch._C.DisableTorchFunction
"""The recorder's own look at a tensor is no part of the model."""


class Watcher(Protocol):
    """Who is shown them."""

    looked_at: set[Place]

    def called(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run one torch function."""
        ...

    def dispatched(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run one ATen op."""
        ...


class Dispatch(TorchDispatchMode):
    """Shows every ATen op."""

    @no_type_check
    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self.watcher = watcher

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.watcher.dispatched(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """Shows every call of torch that Python makes."""

    @no_type_check
    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self.watcher = watcher

    @no_type_check  # the caller's frame is asked for
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.watcher.looked_at.discard(place_of(sys._getframe(1)))
        return self.watcher.called(func, args, kwargs or {})
