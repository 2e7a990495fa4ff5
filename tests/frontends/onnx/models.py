"""Small ONNX models for tests: written as text, with weights drawn, or exported from torch; and how to run them."""

import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from tests.support import fold_error
from unbranch.fold.report import Report
from unbranch.frontends.onnx import reparameterize_onnx
from unbranch.frontends.onnx.running import Runner

Dynamic = Mapping[str, Mapping[int, str]]


def written(
    text: str, weights: Mapping[str, Sequence[int] | np.ndarray], opset: int = 18, seed: int = 0
) -> onnx.ModelProto:
    """A model from the text of its graph, ``weights`` drawn by shape, in the type of the inputs, or given.

    A weight called ``var...`` is positive.
    """
    kind = np.float32 if "float[" in text else np.float64
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    generator = np.random.default_rng(seed)
    for name, shape in weights.items():
        array = shape if isinstance(shape, np.ndarray) else generator.standard_normal(shape).astype(kind)
        array = (np.abs(array) + 0.5).astype(kind) if name.startswith("var") else array
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto | ir.Model, feeds: Mapping[str, Tensor]) -> list[Tensor]:
    """The outputs; float64 models in the reference implementation."""
    return list(Runner(model if isinstance(model, ir.Model) else ir.from_proto(model))(**feeds).values())


def drawn(model: onnx.ModelProto, sizes: Mapping[str, int] | None = None) -> dict[str, Tensor]:
    """Inputs for the model, symbols given by ``sizes``."""
    generator = torch.Generator().manual_seed(1)
    feeds = {}
    for value in ir.from_proto(model).graph.inputs:
        assert value.shape is not None
        shape = [d if isinstance(d, int) else (sizes or {})[str(d.value)] for d in value.shape]
        wide = torch.randn(shape, generator=generator, dtype=torch.float64)
        feeds[str(value.name)] = wide if value.dtype == ir.DataType.DOUBLE else wide.float()
    return feeds


def folded(
    model: onnx.ModelProto, *sizes: Mapping[str, int], tolerance: float | None = None
) -> tuple[onnx.ModelProto, Report]:
    """The folded model, checked to be valid and to compute the same at every size."""
    before = model.SerializeToString()
    after, report = reparameterize_onnx(model)
    assert model.SerializeToString() == before, "the model given was changed"
    onnx.checker.check_model(after)
    for size in sizes or ({},):
        feeds = drawn(model, size)
        for a, b in zip(run(after, feeds), run(model, feeds), strict=True):
            limit = tolerance or (1e-10 if b.dtype == torch.float64 else 1e-5)
            assert fold_error(a, b) <= limit, f"{size}: {report}"
    return after, report


def ops(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each op."""
    return dict(Counter(node.op_type for node in model.graph.node))


def exported(
    network: nn.Module, *examples: Tensor, dynamic: Dynamic | None = None, opset: int = 20
) -> onnx.ModelProto:
    """The network by torch's TorchScript exporter, its norms left as they are."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            examples,
            buffer,  # pyright: ignore[reportArgumentType]
            dynamo=False,
            input_names=[f"x{i}" for i in range(len(examples))],
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamic_axes={name: dict(axes) for name, axes in (dynamic or {}).items()},
            opset_version=opset,
        )
    model = onnx.load_from_string(buffer.getvalue())
    for attribute in (a for node in model.graph.node if node.op_type == "Transpose" for a in node.attribute):
        order = [
            axis % len(attribute.ints) for axis in attribute.ints
        ]  # the exporter writes -1 for movedim, which is invalid
        attribute.ints[:] = order
    return model


def exported_by_dynamo(
    network: nn.Module, *examples: Tensor, dynamic: bool = False, optimize: bool = True
) -> onnx.ModelProto:
    """The network by torch's newer exporter; ``dynamic`` frees the batch and the sizes."""
    dims = [torch.export.Dim("batch"), None, torch.export.Dim("high", min=4), torch.export.Dim("wide", min=4)]
    shapes = tuple({i: d for i, d in enumerate(dims) if d is not None} for _ in examples) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(), examples, dynamo=True, verbose=False, dynamic_shapes=shapes, optimize=optimize
        )
    assert program is not None
    return program.model_proto
