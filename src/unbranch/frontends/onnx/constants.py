"""Values that no input's data reaches: initializers, constants, and what is computed from them or from sizes."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx.reference.ops
import onnx_ir as ir
import torch
from torch import Tensor

STANDARD = ("", "ai.onnx")
"""The names of ONNX's own domain."""

MOST_MADE = 1 << 24
"""An op that makes elements out of nothing, at some size, is not worked out beyond so many."""

_RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
_SIZES = {"Shape", "Size"}
_MAKERS = {"ConstantOfShape", "Expand", "Range", "Tile"}

REFERENCE_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    NotImplementedError,
)
"""What ONNX's reference kernels may raise for a call that they do not take."""


def is_standard(node: ir.Node) -> bool:
    """The node is one of ONNX's own ops."""
    return node.domain in STANDARD


def subgraphs_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that the node holds, such as the branches of an If."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


@dataclass
class Free:
    """The values that no input's data reaches. ``fixed`` are those that no input's size reaches either; their numbers are
    kept, but for those that are ``spent``: they only led to others.

    ``idle`` are the other nodes that matter for the sizes of what they compute only, or not at all.
    """

    values: set[ir.Value] = field(default_factory=set)
    fixed: set[ir.Value] = field(default_factory=set)
    idle: set[ir.Node] = field(default_factory=set)
    known: dict[ir.Value, np.ndarray | None] = field(default_factory=dict)
    spent: set[ir.Value] = field(default_factory=set)
    tensors: dict[ir.Value, Tensor | None] = field(default_factory=dict)

    def is_free(self, node: ir.Node) -> bool:
        """All that the node computes is free."""
        return all(output in self.values for output in node.outputs)


def find_free(graph: ir.Graph) -> Free:
    """The free values of a graph whose nodes stand in order. An initializer that is also an input may be fed, so it is not free."""
    inputs = set(graph.inputs)
    free = Free()
    for value in graph.initializers.values():
        if value not in inputs:
            free.values.add(value)
            free.fixed.add(value)
    for node in graph:
        if not is_standard(node) or node.op_type in _RANDOM or any(subgraphs_of(node)):
            continue
        read = [value for value in node.inputs if value is not None]
        sized = node.op_type in _SIZES or (node.op_type == "CastLike" and read[0] in free.values)
        if sized or all(value in free.values for value in read):
            free.values.update(node.outputs)
        if all(value in free.fixed for value in (read[:1] if node.op_type == "CastLike" else read)):
            free.fixed.update(node.outputs)
    for node in reversed(list(graph)):
        if not free.is_free(node) and not any(_is_live(value, graph, free) for value in node.outputs):
            free.idle.add(node)
    return free


def _is_live(value: ir.Value, graph: ir.Graph, free: Free) -> bool:
    """Its elements reach an output, or a subgraph."""
    if value.is_graph_output():
        return True
    return any(
        node.graph is not graph or not (node in free.idle or free.is_free(node)) for node in value.consumers()
    )


@dataclass
class Evaluator:
    """Works out free values when they are asked for. ``shape_of`` and ``dtype_of`` say what is known of the others."""

    free: Free
    opset: int
    shape_of: Callable[[ir.Value], tuple[int, ...] | None]
    dtype_of: Callable[[ir.Value], ir.DataType | None]
    known: dict[ir.Value, np.ndarray | None] = field(default_factory=dict)

    def array(self, value: ir.Value) -> np.ndarray | None:
        """The numbers of a free value; None where they cannot be worked out."""
        waiting = [value]
        while waiting:
            current = waiting[-1]
            memo = self.free.known if current in self.free.fixed else self.known
            missing = [] if current in memo else [v for v in self._needed(current) if not self._has(v)]
            waiting.extend(missing)
            if not missing:
                waiting.pop()
                if current not in memo:
                    self._work_out(current, memo)
                    self._let_go(current.producer())
        return self._get(value)

    def _has(self, value: ir.Value) -> bool:
        return value in self.free.known or value in self.known

    def _get(self, value: ir.Value) -> np.ndarray | None:
        return self.free.known[value] if value in self.free.fixed else self.known[value]

    def _needed(self, value: ir.Value) -> Iterable[ir.Value]:
        node = value.producer()
        if node is None or node.op_type in _SIZES:
            return ()
        return [v for v in (node.inputs[:1] if node.op_type == "CastLike" else node.inputs) if v is not None]

    def _work_out(self, value: ir.Value, memo: dict[ir.Value, np.ndarray | None]) -> None:
        node = value.producer()
        if node is None:
            memo[value] = None if value.const_value is None else value.const_value.numpy()
            return
        results = self._run(node)
        for output, result in zip(node.outputs, results, strict=False):
            memo[output] = np.asarray(result) if isinstance(result, np.ndarray | np.generic) else None
        for output in node.outputs:
            memo.setdefault(output, None)

    def _let_go(self, node: ir.Node | None) -> None:
        """Forget what went into a node and only ever led to constants that were worked out: the next ones take its memory.

        What is asked for again is worked out again, and kept.
        """
        known, spent = self.free.known, self.free.spent
        for value in () if node is None else node.inputs:
            if value not in known or value in spent:
                continue
            if all(o in known or o in spent for reader in value.consumers() for o in reader.outputs):
                spent.add(value)
                del known[value]

    def _run(self, node: ir.Node) -> tuple[Any, ...]:
        if node.op_type in _SIZES:
            return self._size(node)
        given = [
            None if v is None else self._get(v)
            for v in node.inputs[: 1 if node.op_type == "CastLike" else None]
        ]
        if any(array is None and v is not None for array, v in zip(given, node.inputs, strict=False)):
            return ()
        if node.op_type == "CastLike":
            return self._cast_like(node, given[0])
        if node.op_type in _MAKERS and not _is_modest(node, given):
            return ()
        proto = ir.serde.serialize_node(node)
        try:
            implementation = onnx.reference.ops.load_op("", node.op_type, node.version or self.opset)
            kernel = implementation(
                proto, {"log": _ignore, "opsets": {"": self.opset}, "verbose": 0, "new_ops": None}
            )
            return tuple(kernel.run(*given))
        except REFERENCE_ERRORS:
            return ()

    def _size(self, node: ir.Node) -> tuple[Any, ...]:
        value = node.inputs[0]
        if value is None:
            return ()
        shape = self.shape_of(value)
        if shape is None:
            return ()
        if node.op_type == "Size":
            return (np.asarray(np.prod(shape, dtype=np.int64)),)
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        end = node.attributes["end"].as_int() if "end" in node.attributes else None
        return (np.asarray(shape[start:end], dtype=np.int64),)

    def _cast_like(self, node: ir.Node, array: np.ndarray | None) -> tuple[Any, ...]:
        target = node.inputs[1]
        dtype = None if target is None else self.dtype_of(target)
        return () if dtype is None or array is None else (array.astype(dtype.numpy()),)


def _ignore(*_: Any) -> None:
    """The reference kernels' log goes nowhere."""


def _is_modest(node: ir.Node, given: list[np.ndarray | None]) -> bool:
    """What the op makes stays below `MOST_MADE`."""
    if node.op_type == "Range":
        start, stop, step = (float(a) for a in given if a is not None)
        return step != 0 and (stop - start) / step <= MOST_MADE
    last = given[-1]
    count = 1 if last is None else float(np.prod(last.astype(np.float64)))
    return count * (given[0].size if node.op_type == "Tile" and given[0] is not None else 1) <= MOST_MADE


def to_torch(array: np.ndarray | None) -> Tensor | None:
    """The same numbers as a tensor, memory shared where that is possible; nothing writes to it. None for types without a counterpart."""
    if array is None or not array.dtype.isnative:
        return None
    if array.dtype.name == "bfloat16":
        whole = to_torch(array.view(np.int16))
        return None if whole is None else whole.view(torch.bfloat16)
    if array.dtype.kind not in "fiub":
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        strided = all(step >= 0 and step % array.itemsize == 0 for step in array.strides)
        return torch.from_numpy(array if strided else array.copy())
