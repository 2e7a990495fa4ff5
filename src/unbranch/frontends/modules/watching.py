"""Who reads what a container holds: for one run its children lie in a dict that notes it."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, no_type_check

from torch import nn

_FORWARD = nn.Sequential.forward.__code__


class Shell(nn.Module):
    """Holds the root as any other module is held; ``runs`` while it is called."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root, self.runs = root, False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The root's."""
        self.runs = True
        try:
            return self.root(*args, **kwargs)
        finally:
            self.runs = False


class Watched(dict[str, nn.Module | None]):
    """A container's children: knows that its forward ran, and that anybody else read them."""

    def __init__(self, children: Mapping[str, nn.Module | None], shell: Shell) -> None:
        super().__init__(children)
        self.shell, self.called, self.looked_at = shell, False, False

    @no_type_check  # who asked is two frames up
    def values(self) -> Any:
        """Which is how a container's forward goes through them."""
        if sys._getframe(2).f_code is _FORWARD:
            self.called = True
        else:
            self.look()
        return super().values()

    @no_type_check  # a check of the dict would read it
    def look(self) -> None:
        """Somebody reads them."""
        self.looked_at = self.looked_at or self.shell.runs


def _noting(read: str) -> Callable[..., Any]:
    method = vars(dict)[read]

    @no_type_check
    def noted(self: Watched, *args: Any) -> Any:
        self.look()
        return method(self, *args)

    return noted


for _read in ("__getitem__", "__contains__", "__iter__", "__len__", "__reversed__", "get", "keys", "items"):
    setattr(Watched, _read, _noting(_read))


@contextmanager
def watched(shell: Shell, containers: Mapping[str, nn.Module]) -> Iterator[dict[str, Watched]]:
    """The dicts, by the containers' paths; afterwards the children lie where they lay."""
    held = {path: module._modules for path, module in containers.items()}
    seen = {path: Watched(children, shell) for path, children in held.items()}
    try:
        for path, module in containers.items():
            vars(module)["_modules"] = seen[path]
        yield seen
    finally:
        for path, module in containers.items():
            vars(module)["_modules"] = held[path]
