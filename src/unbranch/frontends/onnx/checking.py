"""What makes a model one that can be folded: checked before anything is read from it."""

import onnx
import onnx_ir as ir

from unbranch.frontends.onnx.constants import STANDARD, subgraphs_of
from unbranch.frontends.onnx.errors import OnnxError

OLDEST_OPSET = 13
KNOWN_DOMAINS = {
    *STANDARD,
    "ai.onnx.ml",
    "ai.onnx.preview",
    "ai.onnx.preview.training",
    "ai.onnx.training",
    "com.microsoft",
    "com.microsoft.dml",
    "com.microsoft.experimental",
    "com.microsoft.nchwc",
    "com.ms.internal.nhwc",
    "org.openvinotoolkit",
    "org.pytorch.aten",
}
"""Domains whose ops are somebody's public op set: opaque to us, and left alone."""

QUANTIZED = {
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QAttention",
    "QGemm",
    "QLinearAdd",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
}


def check_model(model: ir.Model) -> None:
    """Refuse what cannot be folded.

    Raises:
        OnnxError: no graph, an opset that is too old or too new, an unknown domain, values that nothing makes, a cycle, quantization, or
            tensors whose data lies in a file that was not loaded.
    """
    if "" not in model.opset_imports and "ai.onnx" in model.opset_imports:
        model.opset_imports[""] = model.opset_imports.pop("ai.onnx")
    opset = model.opset_imports.get("")
    if not len(model.graph.outputs) or opset is None:
        raise OnnxError(
            "the model has no graph with outputs, or does not say which opset it uses: export it again"
        )
    if opset < OLDEST_OPSET:
        raise OnnxError(
            f"opset {opset} is too old, {OLDEST_OPSET} is the oldest that is read: export with a newer one, "
            "or convert with onnx.version_converter.convert_version"
        )
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise OnnxError(f"opset {opset} is newer than the installed onnx knows ({newest}): upgrade onnx")
    _check_nodes(model.graph, model)
    for function in model.functions.values():
        for node in function:
            _check_node(node, model)
    check_graph(model.graph)


def check_graph(graph: ir.Graph) -> None:
    """Put the nodes in an order in which they can run.

    Raises:
        OnnxError: a value is made by nothing, or there is a cycle.
    """
    _check_values(graph, set())
    _order_nodes(graph)


def _check_nodes(graph: ir.Graph, model: ir.Model) -> None:
    for node in graph:
        _check_node(node, model)
        for inner in subgraphs_of(node):
            _check_nodes(inner, model)


def _check_node(node: ir.Node, model: ir.Model) -> None:
    label = name_of(node)
    if node.op_identifier() in model.functions:
        return
    if node.domain not in KNOWN_DOMAINS:
        raise OnnxError(
            f"{label}: {node.domain}.{node.op_type} is of a domain that nobody knows and the model does not define it "
            "as a function: export without custom ops, or with their functions inside"
        )
    if node.domain in STANDARD and not onnx.defs.has(node.op_type, ""):
        raise OnnxError(
            f"{label}: ONNX has no op {node.op_type}: the file is damaged or its domain is missing"
        )
    if node.domain in STANDARD and node.op_type == "Split":
        parts = node.attributes.get_int("num_outputs", len(node.outputs))
        if parts != len(node.outputs):  # ONNX's shape inference ends the process for it
            raise OnnxError(
                f"{label}: a split into {parts} has {len(node.outputs)} outputs: the graph is invalid"
            )
    if node.op_type in QUANTIZED:
        raise OnnxError(
            f"{label}: the model is quantized ({node.op_type}), and folding must come before quantization: "
            "fold the float model, then quantize the folded one"
        )


def _check_values(graph: ir.Graph, outer: set[ir.Value]) -> None:
    """Every value that is read is an input, a constant, or made by a node."""
    known = outer | {*graph.inputs, *graph.initializers.values()}
    made = known | {value for node in graph for value in node.outputs}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in made:
                raise OnnxError(
                    f"{name_of(node)}: its input {value.name!r} is made by nothing: the graph is invalid"
                )
        for inner in subgraphs_of(node):
            _check_values(inner, made)
    for value in graph.outputs:
        if value not in made:
            raise OnnxError(f"the output {value.name!r} is made by nothing: the graph is invalid")


def _order_nodes(graph: ir.Graph) -> None:
    """Put the nodes of a graph in an order in which they can run, the one they have where it is such.

    Raises:
        OnnxError: there is none.
    """
    seen = {*graph.inputs, *graph.initializers.values()}
    ordered = True
    for node in graph:
        ordered = ordered and all(v is None or v in seen or v.producer() is None for v in node.inputs)
        seen.update(node.outputs)
    if not ordered:
        try:
            graph.sort()
        except ValueError as error:
            raise OnnxError(
                "the graph has a cycle: a node reads what is computed from its own output"
            ) from error


def name_of(node: ir.Node) -> str:
    """The node's name, or its op and what it makes."""
    return node.name or f"{node.op_type} ({', '.join(str(value.name) for value in node.outputs)})"
