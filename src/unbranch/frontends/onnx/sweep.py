"""Shapes and types of every value at one set of stand-ins, node by node, and the numbers of free values."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference
from torch import Tensor

from unbranch.frontends.onnx.constants import Evaluator, Free, is_standard, to_torch
from unbranch.frontends.onnx.standins import StandIns

_MOST_DATA = {ir.DataType.INT64: 1024, ir.DataType.INT32: 1024, ir.DataType.FLOAT: 8}
"""Free inputs of at most so many elements are shown to shape inference: sizes, axes, scales."""


INFERENCE_ERRORS = (
    shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    LookupError,
    ValueError,
)
"""What shape inference may raise for an op that it does not know, or that does not fit its inputs at these sizes."""


class Sweep:
    """One walk over the graph. A shape that is not known is None."""

    def __init__(self, model: ir.Model, numbers: StandIns, free: Free, likely: "Sweep | None" = None) -> None:
        self.numbers, self.free, self.likely = numbers, free, likely
        self.shapes: dict[ir.Value, tuple[int, ...] | None] = {}
        self.types: dict[ir.Value, onnx.TypeProto] = {}
        self.tensors: dict[ir.Value, Tensor | None] = {}
        opset = model.opset_imports[""]
        self.evaluator = Evaluator(free, opset, self.shape_of, self.dtype_of)
        self.imports = [
            onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()
        ]
        self.ir_version = model.ir_version
        for value in model.graph.inputs:
            self._set(value, self._type_of(value, numbers.of_input(value)))
        for node in model.graph:
            if not free.is_free(node):
                self._infer(node, opset)

    def shape_of(self, value: ir.Value) -> tuple[int, ...] | None:
        """The shape, free values' too."""
        if value in self.shapes:
            return self.shapes[value]
        if value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        array = self.evaluator.array(value) if value in self.free.values else None
        return None if array is None else array.shape

    def dtype_of(self, value: ir.Value) -> ir.DataType | None:
        """The element type."""
        if value in self.types:
            kind = self.types[value].tensor_type.elem_type
            return ir.DataType(kind) if kind else value.dtype
        if value.const_value is not None:
            return value.const_value.dtype
        array = self.evaluator.array(value) if value in self.free.values else None
        return value.dtype if array is None else ir.DataType.from_numpy(array.dtype)

    def array(self, value: ir.Value) -> np.ndarray | None:
        """The numbers of a free value."""
        return self.evaluator.array(value)

    def tensor(self, value: ir.Value) -> Tensor | None:
        """The numbers of a free value as a tensor; None where it has no counterpart."""
        memo = self.free.tensors if value in self.free.fixed else self.tensors
        if value not in memo:
            memo[value] = to_torch(self.array(value))
        return memo[value]

    def _set(self, value: ir.Value, kind: onnx.TypeProto | None) -> None:
        shape = None
        if kind is not None:
            self.types[value] = kind
            shape = _fixed_shape(kind)
        self.shapes[value] = shape

    @staticmethod
    def _type_of(value: ir.Value, shape: Sequence[int | None] | None) -> onnx.TypeProto | None:
        if value.dtype is None:
            return None
        return onnx.helper.make_tensor_type_proto(int(value.dtype), None if shape is None else list(shape))

    def _infer(self, node: ir.Node, opset: int) -> None:
        found = self._inferred(node, opset) if is_standard(node) else {}
        for output in node.outputs:
            if not output.name:
                continue
            kind = found.get(output.name)
            if kind is None or not kind.WhichOneof("value"):
                kind = self._type_of(output, self.numbers.declared(output))
            if kind is not None and kind.WhichOneof("value") == "tensor_type" and _fixed_shape(kind) is None:
                self._complete(output, kind)
            self._set(output, kind)

    def _inferred(self, node: ir.Node, opset: int) -> dict[str, onnx.TypeProto]:
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for value in node.inputs:
            if value is None or not value.name:
                continue
            if value in self.free.values:
                dtype, shape = self.dtype_of(value), self.shape_of(value)
                if dtype is None or shape is None:
                    continue
                types[value.name] = onnx.helper.make_tensor_type_proto(int(dtype), list(shape))
                if len(shape) <= 1 and np.prod(shape) <= _MOST_DATA.get(dtype, -1):
                    array = self.array(value)
                    if array is not None:
                        data[value.name] = onnx.numpy_helper.from_array(array, value.name)
            elif value in self.types:
                types[value.name] = self.types[value]
        try:
            schema = onnx.defs.get_schema(node.op_type, node.version or opset, "")
        except onnx.defs.SchemaError:
            return {}
        found = self._asked(schema, node, types, data)
        if found or not any(_is_bfloat16(kind) for kind in types.values()):
            return found
        # Many files hold bfloat16 in ops that had no such type at their opset: their shapes are those of float16.
        halves = {name: _retyped(kind, _BFLOAT16, _FLOAT16) for name, kind in types.items()}
        found = self._asked(schema, node, halves, data)
        return {name: _retyped(kind, _FLOAT16, _BFLOAT16) for name, kind in found.items()}

    def _asked(
        self,
        schema: onnx.defs.OpSchema,
        node: ir.Node,
        types: dict[str, onnx.TypeProto],
        data: dict[str, onnx.TensorProto],
    ) -> dict[str, onnx.TypeProto]:
        try:
            return shape_inference.infer_node_outputs(
                schema, ir.serde.serialize_node(node), types, data, None, self.imports, self.ir_version
            )
        except INFERENCE_ERRORS:
            return {}

    def _complete(self, value: ir.Value, kind: onnx.TypeProto) -> None:
        """Fill in dimensions that inference left open: from the file, or, at other sizes than the likely one, with new numbers."""
        declared = self.numbers.declared(value)
        likely = None if self.likely is None else self.likely.shapes.get(value)
        known = _dimensions(kind)
        rank = next((len(s) for s in (known, declared, likely) if s is not None), None)
        if rank is None:
            return
        sources = [s for s in (known, declared) if s is not None and len(s) == rank]
        shape = [next((s[axis] for s in sources if s[axis] is not None), None) for axis in range(rank)]
        if likely is not None and len(likely) == rank:
            shape = [
                n if n is not None else likely[axis] if axis == 1 else self.numbers.fresh()
                for axis, n in enumerate(shape)
            ]
        kind.tensor_type.shape.Clear()
        for n in shape:
            dimension = kind.tensor_type.shape.dim.add()
            if n is not None:
                dimension.dim_value = n


_FLOAT16, _BFLOAT16 = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16


def _is_bfloat16(kind: onnx.TypeProto) -> bool:
    return kind.tensor_type.elem_type == _BFLOAT16


def _retyped(kind: onnx.TypeProto, old: int, new: int) -> onnx.TypeProto:
    """The type with another element type in place of ``old``."""
    copy = onnx.TypeProto.FromString(kind.SerializeToString())
    if copy.tensor_type.elem_type == old:
        copy.tensor_type.elem_type = new
    return copy


def _dimensions(kind: onnx.TypeProto) -> tuple[int | None, ...] | None:
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in tensor.shape.dim
    )


def _fixed_shape(kind: onnx.TypeProto) -> tuple[int, ...] | None:
    if kind.WhichOneof("value") != "tensor_type":
        return None
    shape = _dimensions(kind)
    return None if shape is None or None in shape else tuple(n for n in shape if n is not None)
