"""ONNX and OpenVINO files from an exported program, with suppression behind the network where it is asked
for.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import torch

from unbranch.detect.nms import Limits
from unbranch.runtimes.sessions import openvino_core

INPUT, PREDICTIONS, DETECTIONS = "images", "predictions", "detections"
BOX_VALUES = 5
END = 2**31 - 1


def write(
    program: torch.export.ExportedProgram, nms: Limits | None, about: Mapping[str, str], path: Path
) -> None:
    """Write the program as ONNX: input `images`, output `predictions` or, with `nms`, `detections`; `about`
    as its metadata.
    """
    converted = torch.onnx.export(program, dynamo=True, verbose=False)
    if converted is None:
        raise ValueError("torch.onnx.export returned no program")
    model = converted.model
    _tidy(model)
    if nms is not None:
        append_suppression(model, nms)
    model.metadata_props.clear()
    model.metadata_props.update(about)
    ir.save(model, path)


def write_openvino(
    program: torch.export.ExportedProgram, nms: Limits | None, about: Mapping[str, str], path: Path
) -> None:
    """Write the program as OpenVINO's `.xml` and `.bin`, float32, by way of ONNX."""
    import openvino

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        via = Path(folder) / "network.onnx"
        write(program, nms, about, via)
        model = openvino_core().read_model(str(via))
        for key, value in about.items():
            model.set_rt_info(value, ["model_info", key])
        openvino.save_model(model, str(path), compress_to_fp16=False)


def _tidy(model: ir.Model) -> None:
    """Readable names of input, output and free sizes; no notes of the exporter's on nodes and values."""
    graph = model.graph
    entry, result = graph.inputs[0], graph.outputs[0]
    entry.name, result.name = INPUT, PREDICTIONS
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in graph.inputs:
        value.metadata_props.clear()
    _name_free(entry, ("batch", None, "height", "width"))
    sizes = list(result.shape or ())
    places: tuple[str | None, ...] = (
        ("batch", None, "boxes") if isinstance(sizes[1], int) else ("batch", "boxes", None)
    )
    _name_free(result, places)


def _name_free(value: ir.Value, names: tuple[str | None, ...]) -> None:
    sizes = list(value.shape or ())
    value.shape = ir.Shape(
        [size if isinstance(size, int) else name for size, name in zip(sizes, names, strict=True)]
    )


def append_suppression(model: ir.Model, limits: Limits) -> None:
    """Put suppression behind predictions (N, total, 5 + classes): the output becomes `detections` (found, 7),
    rows of picture, x1, y1, x2, y2, score, class; best first over all pictures.

    Each box has its best class only. Operators: ONNX NonMaxSuppression (centre and size, within each class),
    opset 13 and on.
    """
    graph = model.graph
    tail = _Tail(ir.tape.Tape(graph))
    predictions = graph.outputs[0]
    boxes = tail.columns(predictions, 0, BOX_VALUES - 1)
    objectness = tail.columns(predictions, BOX_VALUES - 1, BOX_VALUES)
    scores = tail.op("Mul", tail.columns(predictions, BOX_VALUES, END), objectness)
    by_class = tail.op("Transpose", tail.op("Mul", scores, tail.one_hot_best(scores)), perm=[0, 2, 1])
    selected = tail.op(
        "NonMaxSuppression",
        boxes,
        by_class,
        tail.integers(limits.most),
        tail.numbers(limits.iou),
        tail.numbers(limits.confidence),
        center_point_box=1,
    )
    found = tail.rows(boxes, by_class, selected)
    found.name, found.dtype, found.shape = DETECTIONS, ir.DataType.FLOAT, ir.Shape(["found", 7])
    graph.outputs[:] = [found]


class _Tail:
    """Ops and constants, named, at the end of a graph."""

    def __init__(self, tape: ir.tape.Tape) -> None:
        self.tape = tape
        self.constants = 0

    def op(self, kind: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        return self.tape.op(kind, inputs, attributes)

    def integers(self, *values: int) -> ir.Value:
        return self._constant(ir.tensor(list(values), dtype=ir.DataType.INT64))

    def numbers(self, *values: float) -> ir.Value:
        return self._constant(ir.tensor(list(values), dtype=ir.DataType.FLOAT))

    def _constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        self.constants += 1
        return self.tape.initializer(tensor, f"suppression_{self.constants}")

    def columns(self, value: ir.Value, start: int, end: int) -> ir.Value:
        """value[..., start:end]"""
        return self.op("Slice", value, self.integers(start), self.integers(end), self.integers(-1))

    def one_hot_best(self, scores: ir.Value) -> ir.Value:
        """1 at the first of each box's best classes, 0 elsewhere."""
        classes = self.op("Gather", self.op("Shape", scores), self.integers(2), axis=0)
        best = self.op("ArgMax", scores, axis=2, keepdims=0)
        return self.op("OneHot", best, classes, self.numbers(0.0, 1.0), axis=-1)

    def rows(self, boxes: ir.Value, by_class: ir.Value, selected: ir.Value) -> ir.Value:
        """From `selected` (found, 3), picture, class and box of each, to rows (found, 7), best first."""
        unordered = self.op("GatherND", by_class, selected)
        score, order = self.tape.op_multi_out(
            "TopK", [unordered, self.op("Shape", unordered)], {"axis": 0}, num_outputs=2
        )
        chosen = self.op("Gather", selected, order, axis=0)
        picture = self.op("Cast", self.columns(chosen, 0, 1), to=ir.DataType.FLOAT.value)
        label = self.op("Cast", self.columns(chosen, 1, 2), to=ir.DataType.FLOAT.value)
        box = self.op("GatherND", boxes, self.op("Gather", chosen, self.integers(0, 2), axis=1))
        centre = self.columns(box, 0, 2)
        half = self.op("Mul", self.columns(box, 2, 4), self.numbers(0.5))
        low, high = self.op("Sub", centre, half), self.op("Add", centre, half)
        score_column = self.op("Unsqueeze", score, self.integers(1))
        return self.op("Concat", picture, low, high, score_column, label, axis=1)
