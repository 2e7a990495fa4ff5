"""Run a model on the CPU: ONNX Runtime, or, where it has no kernels (float64), ONNX's reference implementation."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi import onnxruntime_pybind11_state as states  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from unbranch.frontends.onnx.constants import REFERENCE_ERRORS, subgraphs_of, to_torch
from unbranch.frontends.onnx.files import save_onnx

RUN_ERRORS = (
    *REFERENCE_ERRORS,
    states.EPFail,
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NotImplemented,
    states.RuntimeException,
)
"""What running a model may raise."""


class Runner:
    """A model that is called with its inputs by name and returns its outputs by name."""

    def __init__(self, model: ir.Model, optimized: bool = True) -> None:
        self.names = [str(value.name) for value in model.graph.outputs]
        self.session: onnxruntime.InferenceSession | ReferenceEvaluator
        if ir.DataType.DOUBLE in set(element_types(model)):
            self.session = ReferenceEvaluator(ir.to_proto(model))
        else:
            self.session = _session(model, optimized)

    def __call__(self, **feeds: Tensor) -> dict[str, Any]:
        """One run."""
        results = self.session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
        return {name: _to_tensors(result) for name, result in zip(self.names, results, strict=True)}


def _session(model: ir.Model, optimized: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(model, path)
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _to_tensors(result: Any) -> Any:
    if isinstance(result, list):
        return [_to_tensors(item) for item in result]
    tensor = to_torch(result) if isinstance(result, np.ndarray) else None
    return result if tensor is None else tensor


def element_types(model: ir.Model) -> Iterator[ir.DataType]:
    """The types of inputs and constants."""
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        if value.dtype is not None:
            yield value.dtype
        elif value.const_value is not None:
            yield value.const_value.dtype


def stored_type(model: ir.Model) -> torch.dtype | None:
    """The half type that the weights are stored in, where they are."""
    found = set(element_types(model))
    if ir.DataType.BFLOAT16 in found:
        return torch.bfloat16
    return torch.float16 if ir.DataType.FLOAT16 in found else None


def in_float32(model: ir.Model) -> ir.Model:
    """A copy whose half-precision tensors, constants and casts are float32, weights rounded as they are stored."""
    copy = ir.from_proto(ir.to_proto(model))
    _widen(copy.graph)
    for function in copy.functions.values():
        for node in function:
            _widen_node(node)
    return copy


_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _widen(graph: ir.Graph) -> None:
    for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)):
        if value.dtype in _HALVES:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        if value.const_value is not None and value.const_value.dtype in _HALVES:
            value.const_value = _widened(value.const_value)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in graph:
        _widen_node(node)


def _widen_node(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALVES:
            node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
        elif (
            name in ("to", "dtype")
            and attribute.type == ir.AttributeType.INT
            and attribute.as_int() in _HALVES
        ):
            node.attributes[name] = ir.AttrInt64(name, onnx.TensorProto.FLOAT)
    for graph in subgraphs_of(node):
        _widen(graph)


def _widened(tensor: ir.TensorProtocol) -> ir.Tensor:
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)
