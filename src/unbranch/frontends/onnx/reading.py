"""An ONNX graph, at one set of stand-ins, as the neutral graph that the planner knows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from unbranch.fold.facts import Fact
from unbranch.fold.graph import Graph
from unbranch.frontends.onnx.constants import is_standard, subgraphs_of
from unbranch.frontends.onnx.errors import first_line
from unbranch.frontends.onnx.sweep import Sweep
from unbranch.ops import TABLE, Operand

DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.BOOL: torch.bool,
}
"""The element types that have a counterpart; a value of any other is opaque."""

UNFIT_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError)
"""What reading a call may raise whose attributes contradict each other or its operands: a file may say anything, and ONNX's own
inference does not look at all of it."""


@dataclass
class Reading:
    """The neutral graph. ``values`` and ``nodes`` say which ONNX value and node each number stands for.

    ``sized`` are the nodes with an argument that follows from an input's size.
    """

    graph: Graph = field(default_factory=Graph)
    values: list[ir.Value | None] = field(default_factory=list)
    numbers: dict[ir.Value, Operand] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)
    sized: set[int] = field(default_factory=set)


def read_graph(model: ir.Model, sweep: Sweep) -> Reading:
    """The graph as ops and values; a node reads what its subgraphs read from outside, and the outputs are kept."""
    reading = Reading()
    for value in model.graph.inputs:
        _number(reading, value, sweep)
    for node in model.graph:
        if sweep.free.is_free(node) or node in sweep.free.idle:
            continue
        pieces = _pieces_of(node, sweep)
        if pieces is not None:
            _call(reading, node, pieces, sweep, "onnx.SplitToSequence")
        elif not _is_piece(node, sweep):
            _call(reading, node, list(node.outputs), sweep, _spelling(node))
    for value in model.graph.outputs:
        if value in reading.numbers:
            reading.graph.kept.add(reading.numbers[value].index)
    return reading


def _spelling(node: ir.Node) -> str:
    return f"onnx.{node.op_type}" if is_standard(node) else f"{node.domain}.{node.op_type}"


def _number(reading: Reading, value: ir.Value | None, sweep: Sweep) -> Operand:
    """A number for a value; for None, for a piece that nobody takes."""
    shape = None if value is None else sweep.shape_of(value)
    dtype = None if value is None else sweep.dtype_of(value)
    kind = DTYPES.get(dtype, torch.uint8) if dtype is not None else torch.uint8
    operand = reading.graph.value(shape or (), kind)
    reading.values.append(value)
    if value is not None:
        reading.numbers[value] = operand
    return operand


def _call(
    reading: Reading, node: ir.Node, outputs: Sequence[ir.Value | None], sweep: Sweep, spelling: str
) -> None:
    given = [value for value in (*node.inputs, *captured(node)) if value is not None]
    operands = [reading.numbers[value] for value in given if value in reading.numbers]
    made = [_number(reading, value, sweep) for value in outputs]
    unknown = [
        v for v in (*given, *outputs[:1]) if v is not None and v in sweep.shapes and sweep.shapes[v] is None
    ]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    reason = None
    if spelling not in TABLE:
        reason = f"{spelling} is not linear"
    elif unknown:
        reason = f"the shape of {unknown[0].name} is not known"
    else:
        args = [_argument(reading, value, sweep) for value in node.inputs]
        missing = [v for v, arg in zip(node.inputs, args, strict=True) if v is not None and arg is None]
        if missing:
            reason = f"{missing[0].name} cannot be worked out"
        kwargs = _attributes(node, sweep.evaluator.opset)
    graph = reading.graph
    try:
        called = graph.call(
            spelling, operands if reason else _trimmed(args), {} if reason else kwargs, made, reason
        )
    except UNFIT_ERRORS as error:
        called = graph.call(
            spelling, operands, {}, made, f"{spelling} does not fit its operands: {first_line(error)}"
        )
    if any(v in sweep.free.values and v not in sweep.free.fixed for v in given):
        reading.sized.add(called.index)
    reading.nodes.append(node)


def _argument(reading: Reading, value: ir.Value | None, sweep: Sweep) -> Operand | Tensor | None:
    if value is None:
        return None
    if value in sweep.free.values:
        return sweep.tensor(value)
    return reading.numbers.get(value)


def _trimmed(args: list[Any]) -> list[Any]:
    """Without inputs that are left out at the end."""
    while args and args[-1] is None:
        args = args[:-1]
    return args


def _attributes(node: ir.Node, opset: int) -> dict[str, Any]:
    """The attributes as the newest version of the op has them."""
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    version = node.version or opset
    if node.op_type == "BatchNormalization" and version < 14 and len(node.outputs) > 1:
        given["training_mode"] = 1  # before there was such an attribute, further outputs said so
    if node.op_type == "Split" and version < 18:
        given["num_outputs"] = len(node.outputs)
    return given


def captured(node: ir.Node) -> list[ir.Value]:
    """The values that the node's subgraphs read from around them."""
    found: dict[ir.Value, None] = {}
    for graph in subgraphs_of(node):
        own = {*graph.inputs, *graph.initializers.values(), *(v for inner in graph for v in inner.outputs)}
        for inner in graph:
            read = [*(v for v in inner.inputs if v is not None), *captured(inner)]
            found |= {v: None for v in read if v not in own}
        found |= {v: None for v in graph.outputs if v not in own}
    return list(found)


def main_node(reading: Reading, fact: Fact) -> ir.Node:
    """The region's node with the largest weight, or its last: the one that the new node is named after."""
    sizes = {
        index: max(
            (v.const_value.size for v in reading.nodes[index].inputs if v is not None and v.const_value),
            default=0,
        )
        for index in sorted(fact.members)
    }
    best = max(sizes, key=lambda index: sizes[index])
    return reading.nodes[best if sizes[best] else max(sizes)]


# A split into a sequence that is taken apart again is a split.


def _pieces_of(node: ir.Node, sweep: Sweep) -> list[ir.Value | None] | None:
    """The values taken from a sequence, by position, where nothing else is done with it."""
    if not is_standard(node) or node.op_type != "SplitToSequence" or node.outputs[0].is_graph_output():
        return None
    pieces: dict[int, ir.Value] = {}
    for user in node.outputs[0].consumers():
        position = _position(user, sweep)
        if position is None or position in pieces:
            return None
        pieces[position] = user.outputs[0]
    return [pieces.get(i) for i in range(max(pieces) + 1)] if pieces else None


def _is_piece(node: ir.Node, sweep: Sweep) -> bool:
    if _position(node, sweep) is None or node.inputs[0] is None:
        return False
    split = node.inputs[0].producer()
    return split is not None and _pieces_of(split, sweep) is not None


def _position(node: ir.Node, sweep: Sweep) -> int | None:
    """The fixed position that a SequenceAt of the main graph takes."""
    if not is_standard(node) or node.op_type != "SequenceAt":
        return None
    value = node.inputs[1]
    if value is None or value not in sweep.free.fixed:
        return None
    array = sweep.array(value)
    return int(array) if array is not None and array.size == 1 and int(array) >= 0 else None
