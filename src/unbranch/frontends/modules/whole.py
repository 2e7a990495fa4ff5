"""A module that is affine as a whole, as a map and as a convolution."""

from torch import Tensor, nn

from unbranch.affine import Affine, NotLinear
from unbranch.fold.facts import Fact
from unbranch.fold.interpret import Interpretation, interpret
from unbranch.frontends.modules.emit import emit
from unbranch.frontends.modules.guards import check_foldable
from unbranch.frontends.modules.recorder import record
from unbranch.frontends.modules.recording import Recording


def to_affine(module: nn.Module, example: Tensor) -> Affine:
    """The map that ``module`` is, in float64: ``module(x) = W * x + b``.

    Raises:
        NotLinear: it is not exactly one convolution; the message says why.
        ValueError: it is in training mode.
    """
    recording, fact = _whole(module, example)
    return fact.evaluate(recording.graph.device)


def to_convolution(module: nn.Module, example: Tensor, pads_same: bool = False) -> nn.Module:
    """The one convolution that equals a module which is affine as a whole, whatever it costs.

    ``module(x) = W * x + b``; shapes as the module's. The parameters do not require gradients; dtype, device and memory format are
    the module's. Where torch's layer cannot pad as needed, a pad and the convolution in an ``nn.Sequential``; ``pads_same`` takes
    ``padding="same"`` for what torch's layer can.

    Raises:
        NotLinear: it is not exactly one convolution; the message says why.
        ValueError: it is in training mode.

    Example:
        >>> block = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8)).eval()
        >>> to_convolution(block, torch.zeros(1, 4, 9, 9))(torch.zeros(2, 4, 5, 7)).shape
        torch.Size([2, 8, 3, 5])
    """
    recording, fact = _whole(module, example)
    weights = [p for p in module.parameters() if p.ndim > 2]
    like = max(weights, key=lambda weight: weight.numel(), default=None)
    dtype = recording.graph.values[fact.value].dtype
    affine = fact.evaluate(recording.graph.device)
    return emit(affine, dtype, like, linear=fact.geometry.rank == 0, pads_same=pads_same)


def _whole(module: nn.Module, example: Tensor) -> tuple[Recording, Fact]:
    check_foldable(module)
    recording = record(module, (example,))
    root, calls = recording.root, (frame for frames in recording.calls.values() for frame in frames)
    doubts = [f"{frame.path or 'it'}: {', '.join(frame.doubts)}" for frame in calls if frame.doubts]
    if doubts:
        raise NotLinear("; ".join(doubts))
    known = interpret(recording.graph)
    facts = known.of(root.outputs[0], root.inputs[0]) if root.outputs else []
    plain = [fact for fact in facts if fact.is_plain and fact.axis == 1]
    if not plain:
        raise NotLinear(_why_not(known, recording))
    return recording, plain[0]


def _why_not(known: Interpretation, recording: Recording) -> str:
    """The first reason that kept a module from being affine as a whole."""
    name = type(recording.root.module).__name__
    for node in recording.graph.nodes:
        reason = node.reason or known.refusals.get(node.index)
        if reason is not None:
            where = recording.frames[node.index].path
            return f"{name} is not one convolution: {where + ': ' if where else ''}{reason}"
    return f"{name} is not one convolution of its input"
