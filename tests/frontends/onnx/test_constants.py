"""Constants that are computed from others: what is kept of them, and how they become tensors."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.frontends.onnx.models import written
from unbranch.frontends.onnx.constants import Evaluator, find_free, to_torch

CHAIN = """g (double[1,4,9,8] x) => (double[1,4,7,6] y, double[4,1,1,1] mean) {
    mean = ReduceMean (w, axes) d = Sub (w, mean) s = Mul (d, d) v = ReduceMean (s, axes)
    n = Div (d, v) y = Conv (x, n)
}"""


@pytest.fixture
def graph() -> ir.Graph:
    """A convolution whose weight is worked out in steps, one of which is an output too."""
    return ir.from_proto(written(CHAIN, {"w": (4, 4, 3, 3), "axes": np.array([1, 2, 3])})).graph


def test_steps_on_the_way_to_a_constant_are_not_kept_and_are_worked_out_again(graph: ir.Graph) -> None:
    free = find_free(graph)
    evaluator = Evaluator(free, 18, lambda value: None, lambda value: None)
    values = {str(value.name): value for node in graph for value in (*node.inputs, *node.outputs) if value}
    weight = values["w"].const_value
    assert weight is not None
    w = weight.numpy()
    d = w - w.mean((1, 2, 3), keepdims=True)
    expected = d / (d * d).mean((1, 2, 3), keepdims=True)
    found = evaluator.array(values["n"])
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert {str(value.name) for value in free.known} == {"n"}
    for name, numbers in (("v", (d * d).mean((1, 2, 3), keepdims=True)), ("s", d * d), ("d", d), ("w", w)):
        again = evaluator.array(values[name])
        assert again is not None
        np.testing.assert_allclose(again, numbers, rtol=1e-12)


def test_a_constant_that_an_op_on_the_input_reads_too_is_kept() -> None:
    text = (
        "g (double[4,4] x) => (double[4,4] y) { k = Neg (w) l = Neg (k) a = MatMul (x, k) y = MatMul (a, l) }"
    )
    graph = ir.from_proto(written(text, {"w": (4, 4)})).graph
    free = find_free(graph)
    values = {str(value.name): value for node in graph for value in node.outputs}
    Evaluator(free, 18, lambda value: None, lambda value: None).array(values["l"])
    assert {str(value.name) for value in free.known} == {"k", "l"}


def test_an_array_in_another_order_is_a_tensor_without_a_copy() -> None:
    array = np.arange(12.0).reshape(3, 4)
    for view in (array.T, array[::2, 1:], np.broadcast_to(array[:1], (3, 4)), array[:0], array[0, 0, None]):
        tensor = to_torch(view)
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), view)
        assert np.shares_memory(tensor.numpy(), array) == bool(view.size)
    backwards = to_torch(array[::-1])
    assert backwards is not None
    np.testing.assert_array_equal(backwards.numpy(), array[::-1])
