"""Write an affine map as ONNX nodes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import TypeAlias

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

from unbranch.affine import ELEMENT, Affine, Geometry, NotLinear
from unbranch.fold.facts import Fact
from unbranch.fold.graph import Graph
from unbranch.frontends.dense import dense_work
from unbranch.frontends.padding import padding_work
from unbranch.ops import Reshape

_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_WRAP_SINCE = 19
_END = 2**63 - 1


@dataclass
class Emitted:
    """New nodes in the order they run, and the constants that they read."""

    nodes: list[ir.Node] = field(default_factory=list)
    constants: list[ir.Value] = field(default_factory=list)

    @property
    def output(self) -> ir.Value:
        """What the last node computes."""
        return self.nodes[-1].outputs[0]


def check_emittable(fact: Fact, opset: int) -> None:
    """Refuse what ONNX has no node for.

    Raises:
        NotLinear: with the reason.
    """
    g = fact.geometry
    if g.transposed and any(side < 0 for side, _ in g.padding):
        raise NotLinear(f"{g} that adds {g.padding} in front of its output")
    if g.mode != "zeros" and g.is_padded and g.is_cropped:
        raise NotLinear(f"{g.mode} padding {g.padding} that also crops")
    if g.mode == "circular" and opset < _WRAP_SINCE:
        raise NotLinear(f"circular padding needs opset {_WRAP_SINCE}, the model has {opset}")
    if not g.rank and not g.is_pointwise:
        raise NotLinear(f"{g} on a value without spatial axes")


def extra_work(graph: Graph, fact: Fact) -> float:
    """What must stand beside the convolution, or is denser than its groups, on top of its own work.

    A padding costs what one costs that stands there already, so that none is done again.
    """
    g = fact.geometry
    elements = prod(fact.shape)
    if g.is_diagonal:
        return _of_sum(elements) if fact.axis != 1 and g.biased else 0.0
    if not g.rank:
        return dense_work(fact) + (_of_sum(elements) if ndim_of(fact) > 2 and g.biased else 0.0)
    if (g.mode != "zeros" and g.is_padded) or (not g.transposed and g.is_cropped):
        return padding_work(graph, fact)
    return 0.0


def _of_sum(elements: int) -> float:
    """A sum with a constant."""
    return (1 + 2 * ELEMENT) * elements


def nodes_written(graph: Graph, fact: Fact) -> int:
    """How many nodes it takes, the views behind them included; reshapes one after the other become one."""
    g, kind = fact.geometry, kind_of(fact)
    views = [isinstance(graph.nodes[index].records[0], Reshape) for index in fact.pending]
    repeated = sum(a and b for a, b in pairwise(views))
    beside = g.biased if kind in ("Mul", "MatMul") else kind == "Conv" and _padded_beside(g)
    return 1 + beside + len(views) - repeated


def _padded_beside(g: Geometry) -> bool:
    """A convolution node pads with zeros, and crops nothing."""
    return (g.mode != "zeros" and g.is_padded) or g.is_cropped


def ndim_of(fact: Fact) -> int:
    """The number of axes of the map's own output, before any rearrangement that follows it."""
    return fact.geometry.rank + 2 if fact.axis == 1 else fact.axis + 1


def kind_of(fact: Fact) -> str:
    """The op that does the work."""
    g = fact.geometry
    if g.is_diagonal:
        return "BatchNormalization" if fact.axis == 1 and g.biased else "Mul"
    if not g.rank:
        return "Gemm" if ndim_of(fact) == 2 else "MatMul"
    return "ConvTranspose" if g.transposed else "Conv"


def emit(
    affine: Affine, fact: Fact, source: ir.Value, dtype: torch.dtype, name: str, unique: Callable[[str], str]
) -> Emitted:
    """The nodes that compute ``affine`` of ``source`` in ``dtype``; ``name`` is the working node's, ``unique`` makes new ones."""
    made = Emitted()

    def constant(tensor: Tensor, role: str) -> ir.Value:
        return _constant(made, tensor.to(dtype).contiguous(), unique(f"{name}.{role}"))

    kind = kind_of(fact)
    if kind == "BatchNormalization":
        _diagonal_at_channels(made, affine, source, name, constant)
    elif kind == "Mul":
        _diagonal(made, affine, source, ndim_of(fact) if fact.axis == 1 else 2, name, unique, constant)
    elif kind in ("Gemm", "MatMul"):
        _matrix(made, affine, source, kind, name, unique, constant)
    else:
        _convolution(made, affine, source, kind, name, unique, constant)
    made.output.type = source.type
    return made


Constant = Callable[[Tensor, str], ir.Value]


def _constant(made: Emitted, tensor: Tensor, name: str) -> ir.Value:
    value = _named(tensor, name)
    made.constants.append(value)
    return value


def _named(tensor: Tensor, name: str) -> ir.Value:
    data = TorchTensor(tensor, name)
    return ir.Value(
        name=name, type=ir.TensorType(data.dtype), shape=ir.Shape(tuple(tensor.shape)), const_value=data
    )


def integers(numbers: list[int], name: str) -> ir.Value:
    """A constant of sizes or axes."""
    return _named(torch.tensor(numbers, dtype=torch.int64), name)


def _integers(made: Emitted, numbers: list[int], name: str) -> ir.Value:
    made.constants.append(integers(numbers, name))
    return made.constants[-1]


Setting: TypeAlias = str | int | float | list[int]


def node_of(kind: str, inputs: list[ir.Value], name: str, **settings: Setting) -> ir.Node:
    """A node of one of ONNX's own ops."""
    return ir.Node("", kind, inputs, [_attribute(key, value) for key, value in settings.items()], name=name)


def _attribute(name: str, value: Setting) -> ir.Attr:
    """With its kind said: to find out what a list may be takes longer than to fold a layer."""
    match value:
        case str():
            return ir.AttrString(name, value)
        case int():
            return ir.AttrInt64(name, value)
        case float():
            return ir.AttrFloat32(name, value)
        case _:
            return ir.AttrInt64s(name, value)


def _node(made: Emitted, kind: str, inputs: list[ir.Value], name: str, **settings: Setting) -> ir.Value:
    node = node_of(kind, inputs, name, **settings)
    made.nodes.append(node)
    return node.outputs[0]


def _diagonal_at_channels(
    made: Emitted, affine: Affine, source: ir.Value, name: str, constant: Constant
) -> None:
    """A norm of mean 0 and variance 1, which the runtimes do in one pass."""
    scale = affine.weight.flatten()
    zeros = torch.zeros_like(scale)
    shift = zeros if affine.bias is None else affine.bias
    inputs = [source, constant(scale, "scale"), constant(shift, "shift")]
    inputs += [constant(zeros, "mean"), constant(torch.ones_like(scale), "variance")]
    _node(made, "BatchNormalization", inputs, name, epsilon=0.0)


def _diagonal(
    made: Emitted,
    affine: Affine,
    source: ir.Value,
    ndim: int,
    name: str,
    unique: Callable[[str], str],
    constant: Constant,
) -> None:
    """A product, and a sum where there is a bias, broadcast along the axes after the channels."""
    shape = (-1, *(1,) * (ndim - 2))
    value = _node(made, "Mul", [source, constant(affine.weight.reshape(shape), "scale")], name)
    if affine.bias is not None:
        _node(made, "Add", [value, constant(affine.bias.reshape(shape), "shift")], unique(f"{name}.add"))


def _matrix(
    made: Emitted,
    affine: Affine,
    source: ir.Value,
    kind: str,
    name: str,
    unique: Callable[[str], str],
    constant: Constant,
) -> None:
    blocks = affine.weight.flatten(3).squeeze(-1) if affine.rank else affine.weight
    dense = blocks[0] if len(blocks) == 1 else torch.block_diag(*blocks)
    if kind == "Gemm":
        inputs = [source, constant(dense, "weight")]
        inputs += [] if affine.bias is None else [constant(affine.bias, "bias")]
        _node(made, "Gemm", inputs, name, transB=1)
        return
    value = _node(made, "MatMul", [source, constant(dense.t(), "weight")], name)
    if affine.bias is not None:
        _node(made, "Add", [value, constant(affine.bias, "bias")], unique(f"{name}.add"))


def _cropped(
    made: Emitted, g: Geometry, source: ir.Value, name: str, unique: Callable[[str], str]
) -> ir.Value:
    """What negative padding leaves: a node of its own, for a convolution node does not take it."""
    cut = [axis for axis, sides in enumerate(g.padding) if min(sides) < 0]
    starts = [max(0, -g.padding[axis][0]) for axis in cut]
    ends = [min(0, g.padding[axis][1]) or _END for axis in cut]
    bounds = {"starts": starts, "ends": ends, "axes": [axis + 2 for axis in cut]}
    listed = [_integers(made, numbers, unique(f"{name}.{role}")) for role, numbers in bounds.items()]
    return _node(made, "Slice", [source, *listed], unique(f"{name}.crop"))


def _convolution(
    made: Emitted,
    affine: Affine,
    source: ir.Value,
    kind: str,
    name: str,
    unique: Callable[[str], str],
    constant: Constant,
) -> None:
    g = affine.geometry
    pads, attributes = g.padding, {}
    if kind == "ConvTranspose":
        attributes["output_padding"] = [max(0, -after) for _, after in pads]
        pads = tuple((before, max(0, after)) for before, after in pads)
    elif g.is_cropped:
        source = _cropped(made, g, source, name, unique)
        pads = tuple((max(0, b), max(0, a)) for b, a in pads)
    elif _padded_beside(g):
        sides = [0, 0, *(b for b, _ in pads), 0, 0, *(a for _, a in pads)]
        listed = _integers(made, sides, unique(f"{name}.pads"))
        source = _node(made, "Pad", [source, listed], unique(f"{name}.pad"), mode=_PAD_MODES[g.mode])
        pads = ((0, 0),) * g.rank
    inputs = [source, constant(affine.module_weight(), "weight")]
    inputs += [] if affine.bias is None else [constant(affine.bias, "bias")]
    _node(
        made,
        kind,
        inputs,
        name,
        kernel_shape=list(g.kernel),
        strides=list(g.stride),
        pads=[b for b, _ in pads] + [a for _, a in pads],
        dilations=list(g.dilation),
        group=g.groups,
        **attributes,
    )
