"""Frames: the module calls of one run, as a tree, with the values that went in and came out."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn


@dataclass(eq=False)
class Frame:
    """One call of one module. ``events`` holds, in order, the nodes that its own forward ran and the calls that it made.

    ``doubts`` says why the recording of this call may not hold for another input. ``first`` and ``last`` delimit its nodes.
    """

    module: nn.Module
    path: str
    parent: "Frame | None"
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    simple: bool = True
    doubts: list[str] = field(default_factory=list)
    events: list["int | Frame"] = field(default_factory=list)
    first: int = 0
    last: int = 0

    @property
    def nodes(self) -> range:
        """Every node that ran within the call, nested calls included."""
        return range(self.first, self.last)

    @property
    def is_torch(self) -> bool:
        """The forward is torch.nn's own: what it does depends on nothing but its documented arguments."""
        return type(self.module).__module__.startswith("torch.nn.")

    @property
    def is_hooked(self) -> bool:
        """Somebody watches the module's input or output."""
        return bool(self.hooks)

    @property
    def hooks(self) -> list[object]:
        """The user's forward hooks; those that only compute a weight (weight norm, spectral norm) are none."""
        hooks = [*self.module._forward_hooks.values(), *self.module._forward_pre_hooks.values()]
        return [hook for hook in hooks if not type(hook).__module__.startswith("torch.nn.utils.")]

    def ancestors(self) -> Iterator["Frame"]:
        """Itself, its caller, and so on to the root."""
        frame: Frame | None = self
        while frame is not None:
            yield frame
            frame = frame.parent

    def contains(self, nodes: frozenset[int]) -> bool:
        """All of ``nodes`` ran within the call."""
        return all(node in self.nodes for node in nodes)


def common_frame(frames: list[Frame]) -> Frame:
    """The deepest call that all of ``frames`` ran in."""
    shared = list(frames[0].ancestors())
    for frame in frames[1:]:
        lineage = {id(f) for f in frame.ancestors()}
        shared = [f for f in shared if id(f) in lineage]
    return shared[0]
