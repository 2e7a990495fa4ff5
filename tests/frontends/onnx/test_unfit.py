"""Calls that contradict themselves or their operands: files may say anything, and each is an op that is left alone, never an exception."""

import numpy as np
import onnx
import pytest

from unbranch.frontends.onnx import reparameterize_onnx

CALLS = {
    "groups": ("Conv", {"group": 3}, {"w": (4, 4, 3, 3)}),
    "no groups": ("Conv", {"group": 0}, {"w": (4, 4, 3, 3)}),
    "negative groups": ("Conv", {"group": -1}, {"w": (4, 4, 3, 3)}),
    "a short bias": ("Conv", {}, {"w": (4, 4, 3, 3), "b": (3,)}),
    "a bias with axes": ("Conv", {}, {"w": (4, 4, 3, 3), "b": (4, 1)}),
    "a short variance": ("BatchNormalization", {}, {"g": (4,), "b": (4,), "m": (4,), "v": (3,)}),
    "a kind of padding": ("Pad", {"mode": "foo"}, {"p": [0, 0, 1, 1, 0, 0, 1, 1]}),
    "a short padding": ("Pad", {}, {"p": [1, 1]}),
    "a filling of two numbers": ("Pad", {}, {"p": [0, 0, 1, 1, 0, 0, 1, 1], "v": (2,)}),
    "a size of no axis": ("Reshape", {}, {"s": [2, 4, 9, 9, 0]}),
    "a table of sizes": ("Reshape", {}, {"s": [[2, 324]]}),
    "an axis too far": ("Slice", {}, {"s": [0], "e": [4], "a": [7]}),
    "fewer ends than starts": ("Slice", {}, {"s": [0, 0], "e": [1], "a": [0, 1]}),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_call_that_does_not_fit_is_left_alone(case: str) -> None:
    op, attributes, constants = CALLS[case]
    node = onnx.helper.make_node(op, ["x", *constants], ["first"], "odd", **attributes)
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [
            node,
            onnx.helper.make_node("Neg", ["first"], ["second"]),
            onnx.helper.make_node("Neg", ["second"], ["y"]),
        ],
        "odd",
        [onnx.helper.make_tensor_value_info("x", kind, (2, 4, 9, 9))],
        [onnx.helper.make_tensor_value_info("y", kind, (2, 4, 9, 9))],
        [
            onnx.numpy_helper.from_array(
                np.ones(shape, np.float32) if isinstance(shape, tuple) else np.array(shape), name
            )
            for name, shape in constants.items()
        ],
        value_info=[onnx.helper.make_tensor_value_info("first", kind, (2, 4, 9, 9))],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    after, report = reparameterize_onnx(model)
    assert after.graph.node[0].op_type == op
    assert any(refused.place == "odd" for refused in report.refused), report
    assert all("\n" not in refused.reason for refused in report.refused)
