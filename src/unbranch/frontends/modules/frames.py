"""Frames: the module calls of one run, as a tree, with the values that went in and came out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

LEAKED = "it is given a number, or a constant, that was read from the input"


class StandIn(nn.Module):
    """A module that stands for one layer: when all that it holds becomes one convolution, that takes its place."""


@dataclass(eq=False)
class Frame:
    """One call of one module. ``events`` holds, in order, the nodes that its own forward ran and the calls that it made.

    ``doubts`` says why the recording of this call may not hold for another input. ``first`` and ``last`` delimit its nodes.
    ``given`` holds what else it was called with: numbers, strings, constant tensors; ``named``: some of it by name.
    """

    module: nn.Module
    path: str
    parent: "Frame | None"
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    simple: bool = True
    doubts: list[str] = field(default_factory=list)
    given: tuple[Any, ...] = ()
    named: bool = False
    events: list["int | Frame"] = field(default_factory=list)
    first: int = 0
    last: int = 0

    @property
    def nodes(self) -> range:
        """Every node that ran within the call, nested calls included."""
        return range(self.first, self.last)

    @property
    def is_torch(self) -> bool:
        """The forward is torch.nn's own: what it does depends on nothing but its documented arguments.

        Parametrizing a layer puts a class of torch's in front of the layer's own.
        """
        kinds = (kind.__module__ for kind in type(self.module).__mro__)
        own = next(name for name in kinds if name != parametrize.__name__)
        return own.startswith("torch.nn.")

    @property
    def is_hooked(self) -> bool:
        """Somebody watches the module's input or output."""
        module = self.module
        return bool(module._forward_hooks or module._forward_pre_hooks) and bool(self.hooks)

    @property
    def hooks(self) -> list[object]:
        """The user's forward hooks; those that only compute a weight (weight norm, spectral norm) are none."""
        hooks = [*self.module._forward_hooks.values(), *self.module._forward_pre_hooks.values()]
        return [hook for hook in hooks if not type(hook).__module__.startswith("torch.nn.utils.")]

    def own_tensors(self) -> list[Tensor]:
        """The parameters and buffers that the module itself owns."""
        owned = (*self.module._parameters.values(), *self.module._buffers.values())
        return [tensor for tensor in owned if tensor is not None]

    def distrust(self, why: str) -> None:
        """The call may do something else for another input, and so may the calls that it passes its numbers to."""
        if why not in self.doubts:
            self.doubts.append(why)
            for event in self.events:
                if isinstance(event, Frame) and event.given:
                    event.distrust(why)

    def ancestors(self) -> Iterator["Frame"]:
        """Itself, its caller, and so on to the root."""
        frame: Frame | None = self
        while frame is not None:
            yield frame
            frame = frame.parent

    def up_to(self, top: "Frame") -> Iterator["Frame"]:
        """Itself, its caller, and so on to ``top``."""
        for frame in self.ancestors():
            yield frame
            if frame is top:
                break

    def calls_within(self) -> Iterator["Frame"]:
        """The calls that it made, and those that they made."""
        for event in self.events:
            if isinstance(event, Frame):
                yield event
                yield from event.calls_within()

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
