"""ONNX files, read and written whole or not at all, with their external data."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from unbranch.frontends.onnx.checking import check_graph
from unbranch.frontends.onnx.errors import OnnxError, first_line, root_of

_EXTERNAL = "unbranch.external"
"""Where a model in memory remembers that its data lay beside the file."""

MOST_SMALL_BYTES = 256
"""Tensors of so many bytes lie in the model whatever the others do."""

MOST_BYTES = 2**31 - 2**20
"""A protocol buffer holds less than 2 GiB; larger models need external data."""


def load_onnx(path: str | Path) -> ir.Model:
    """The model in a file; tensors outside of the file are mapped, not read.

    Raises:
        OnnxError: there is no such file, it is cut short or is no ONNX model, or its external data is missing, too short, or outside of
            the file's folder (which is refused, whatever is there); or its graph has a cycle or reads what nothing makes.
    """
    path = Path(path)
    if not path.is_file():
        raise OnnxError(f"{path}: there is no such file")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise OnnxError(f"{path}: it is no ONNX model, or is cut short: fetch or export it again") from error
    if not proto.HasField("graph"):
        raise OnnxError(f"{path}: it holds no graph: it is no ONNX model, or is cut short")
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, path)
    model = _deserialized(proto, str(path))
    ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    model.meta[_EXTERNAL] = is_external(model)
    check_graph(model.graph)
    return model


def save_onnx(model: onnx.ModelProto | ir.Model, path: str | Path) -> None:
    """Write a model. Data that was external stays so, in ``NAME.data`` beside the file; nothing is left half written.

    Raises:
        OnnxError: the folder does not exist, or the data of a tensor cannot be read.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise OnnxError(f"{path.parent}: there is no such folder")
    ours = from_any(model)
    external = is_external(ours)
    data = f"{path.name}.data"
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        try:
            _take_in_small(ours)
            ir.save(
                ours,
                temporary,
                format="protobuf",
                external_data=data if external else None,
                size_threshold_bytes=MOST_SMALL_BYTES,
            )
        except OSError as error:
            raise OnnxError(f"{path}: it cannot be written: {error}") from error
        written = Path(folder) / data
        if written.exists():
            os.replace(written, path.parent / data)
        os.replace(temporary, path)


def _take_in_small(model: ir.Model) -> None:
    """Small tensors lie in the model itself; the file they came from stays open for whoever still reads it."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= MOST_SMALL_BYTES:
                value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)


def is_external(model: ir.Model) -> bool:
    """Some tensor lies in a file of its own, or did when the model was read, or all together are too large for one."""
    if model.meta.get(_EXTERNAL):
        return True
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return (
        any(isinstance(t, ir.ExternalTensor) for t in tensors) or sum(t.nbytes for t in tensors) > MOST_BYTES
    )


def from_any(model: onnx.ModelProto | ir.Model) -> ir.Model:
    """A model of our own to change; the tensors' numbers are shared.

    Raises:
        OnnxError: the model is no valid one, or its data lies in files whose folder is not known.
    """
    if isinstance(model, ir.Model):
        return _cloned(model)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
        raise OnnxError(
            "the model's data lies in other files, whose folder it does not know: read it with load_onnx(path)"
        )
    return _deserialized(model, "the model")


def _cloned(model: ir.Model) -> ir.Model:
    try:
        copy = model.clone()
    except RuntimeError:
        check_graph(model.graph)  # says what is wrong, or puts the nodes in the order that a copy needs
        copy = model.clone()
    copy.meta[_EXTERNAL] = is_external(model)
    return copy


def to_like(ours: ir.Model, given: onnx.ModelProto | ir.Model) -> onnx.ModelProto | ir.Model:
    """Our model in the type that was given."""
    return ours if isinstance(given, ir.Model) else ir.to_proto(ours)


def _deserialized(proto: onnx.ModelProto, label: str) -> ir.Model:
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise OnnxError(f"{label}: the sparse initializer {name!r} is not read: export it dense")
    twice = [name for name, n in Counter(tensor.name for tensor in proto.graph.initializer).items() if n > 1]
    if twice:
        raise OnnxError(f"{label}: two initializers are called {twice[0]!r}: the graph is invalid")
    if proto.training_info:
        raise OnnxError(f"{label}: it holds training graphs: export the inference graph alone")
    try:
        return ir.from_proto(proto)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise OnnxError(f"{label}: it is no valid ONNX model: {first_line(root_of(error))}") from error


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor in a model, those in attributes, subgraphs and functions too."""
    yield from _tensors_of_graph(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _tensors_of_node(node)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _tensors_of_node(node)


def _tensors_of_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _tensors_of_graph(attribute.g)
        for graph in attribute.graphs:
            yield from _tensors_of_graph(graph)


def _check_external(tensor: onnx.TensorProto, path: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = path.parent.resolve()
    target = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not target.is_relative_to(folder):
        raise OnnxError(
            f"{path}: the data of {tensor.name!r} is said to lie in {location!r}, outside of the model's folder: not followed"
        )
    if not target.is_file():
        raise OnnxError(
            f"{path}: the data of {tensor.name!r} is missing: there is no {location!r} beside the model"
        )
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError as error:
        raise OnnxError(
            f"{path}: the data of {tensor.name!r} has an offset or a length that is no number"
        ) from error
    if offset < 0 or length < 0 or offset + length > target.stat().st_size:
        raise OnnxError(
            f"{path}: the data of {tensor.name!r} ends at byte {offset + length} of {location!r}, which has {target.stat().st_size}"
        )
