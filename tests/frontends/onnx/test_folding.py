"""Small models: what becomes one node, what survives, and what is left alone with its reason."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from tests.frontends.onnx.models import drawn, folded, ops, run, written
from tests.support import fold_error
from unbranch.frontends.onnx import explain_onnx, reparameterize_onnx

BRANCHES = """g (double[2,4,7,9] x) => (double[2,4,7,9] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w3)
    an = BatchNormalization <epsilon = 0.001> (a, g1, b1, m1, var1)
    b = Conv (x, w1, c1)
    bn = BatchNormalization (b, g2, b2, m2, var2)
    xn = BatchNormalization (x, g3, b3, m3, var3)
    s = Sum (an, bn, xn)
    y = Relu (s)
}"""
NORMS = {f"{kind}{i}": (4,) for i in (1, 2, 3) for kind in ("g", "b", "m", "var")}
BRANCH_WEIGHTS = {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "c1": (4,), **NORMS}


def test_three_branches_become_one_convolution() -> None:
    after, report = folded(written(BRANCHES, BRANCH_WEIGHTS))
    assert ops(after) == {"Conv": 1, "Relu": 1}
    assert (report.before.ops, report.after.ops) == (7, 2)
    assert report.before.parameters == 144 + 16 + 4 + 48
    assert report.after.parameters == 144 + 4 == sum(np.prod(i.dims) for i in after.graph.initializer)
    assert report.before.multiply_adds == 63 * 2 * (144 + 16 + 3 * 4)


CASES: list[tuple[str, str, dict[str, tuple[int, ...]], dict[str, int]]] = [
    (
        "same padding, sums either way, a scale, a difference",
        "(double[1,4,8,9] x) => (double[1,6,8,9] y) {"
        ' a = Conv <auto_pad = "SAME_UPPER"> (x, w2) b = Conv <auto_pad = "SAME_LOWER"> (x, w3) c = Mul (k, b)'
        " d = Sub (a, c) e = Div (d, k2) f = Neg (e) y = Add (c1, f) }",
        {"w2": (6, 4, 2, 2), "w3": (6, 4, 3, 3), "k": (6, 1, 1), "k2": (1,), "c1": (1, 6, 1, 1)},
        {"Conv": 1},
    ),
    (
        "strided with auto_pad at a fixed size",
        '(double[1,4,8,9] x) => (double[1,6,4,5] y) { a = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w) '
        "y = BatchNormalization (a, g, b, m, var) }",
        {"w": (6, 4, 3, 3), **dict.fromkeys(("g", "b", "m", "var"), (6,))},
        {"Conv": 1},
    ),
    (
        "transposed, grouped, asymmetric",
        "(float[1,4,5,6] x) => (float[1,6,h,w] y) {"
        " a = ConvTranspose <group = 2, strides = [2, 3], pads = [0, 1, 1, 0], output_padding = [1, 2]> (x, w0)"
        " y = BatchNormalization (a, g, b, m, var) }",
        {"w0": (4, 3, 3, 3), **dict.fromkeys(("g", "b", "m", "var"), (6,))},
        {"ConvTranspose": 1},
    ),
    (
        "average pool as a branch",
        "(double[1,4,7,7] x) => (double[1,4,7,7] y) {"
        " p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)"
        " q = Conv (p, w1) r = Conv <pads = [1, 1, 1, 1]> (x, w3) y = Add (q, r) }",
        {"w1": (4, 4, 1, 1), "w3": (4, 4, 3, 3)},
        {"Conv": 1},
    ),
    (
        "a pad before a bias-free kernel",
        "(double[1,4,7,7] x) => (double[1,6,9,7] y) { a = Conv (x, w1) p = Pad (a, pads, zero) y = Conv (p, w3) }",
        {"w1": (4, 4, 1, 1), "w3": (6, 4, 3, 3)},
        {"Conv": 1},
    ),
    (
        "concatenated and split again",
        "(double[1,4,7,7] x) => (double[1,4,7,7] y) { a = Conv (x, w1) b = Conv (x, w2) c = Concat <axis = 1> (a, b)"
        " s, t = Split <axis = 1, num_outputs = 2> (c) y = Sub (s, t) }",
        {"w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1)},
        {"Conv": 1},
    ),
    (
        "gathered channels",
        "(double[1,4,7,7] x) => (double[1,3,7,7] y) { a = Conv (x, w1) y = Gather <axis = 1> (a, index) }",
        {"w1": (6, 4, 1, 1)},
        {"Conv": 1},
    ),
    (
        "a channel shuffle between convolutions",
        "(double[2,4,5,6] x) => (double[2,6,5,6] y) { a = Conv <group = 2> (x, w1) b = Reshape (a, split)"
        " c = Transpose <perm = [0, 2, 1, 3, 4]> (b) d = Reshape (c, merged) y = Conv <group = 2> (d, w2) }",
        {"w1": (6, 2, 1, 1), "w2": (6, 3, 1, 1)},
        {"Conv": 1},
    ),
    (
        "linear layers on rows",
        "(double[5,4] x) => (double[5,3] y) { a = Gemm <transB = 1> (x, w1, c1) b = MatMul (a, w2) y = Add (b, c2) }",
        {"w1": (6, 4), "c1": (6,), "w2": (6, 3), "c2": (3,)},
        {"Gemm": 1},
    ),
    (
        "linear layers on tokens",
        "(double[2,5,4] x) => (double[2,5,3] y) { a = MatMul (x, w1) b = Add (a, c1) d = Mul (b, k) y = MatMul (d, w2) }",
        {"w1": (4, 6), "c1": (6,), "k": (6,), "w2": (6, 3)},
        {"MatMul": 1, "Add": 1},
    ),
    (
        "a norm and a scale",
        "(double[2,4,3] x) => (double[2,4,3] y) { a = BatchNormalization (x, g, b, m, var) y = Mul (a, k) }",
        {"k": (4, 1), **dict.fromkeys(("g", "b", "m", "var"), (4,))},
        {"BatchNormalization": 1},
    ),
    (
        "scales of the last axis",
        "(double[2,3,4] x) => (double[2,3,4] y) { a = Mul (x, k) b = Mul (a, k2) y = Add (b, c) }",
        {"k": (4,), "k2": (4,), "c": (4,)},
        {"Mul": 1, "Add": 1},
    ),
    (
        "a layout that is left behind",
        "(double[2,4,5,6] x) => (double[2,30,4] y) { a = Conv (x, w1) b = Reshape (a, rows) c = Transpose <perm = [0, 2, 1]> (b)"
        " y = Mul (c, k) }",
        {"w1": (4, 4, 1, 1), "k": (4,)},
        {"Conv": 1, "Reshape": 1, "Transpose": 1},
    ),
    (
        "reflected border",
        '(double[1,4,7,7] x) => (double[1,4,7,7] y) { a = Conv (x, w1, c1) p = Pad <mode = "reflect"> (a, ring) y = Conv (p, w3) }',
        {"w1": (4, 4, 1, 1), "c1": (4,), "w3": (4, 4, 3, 3)},
        {"Pad": 1, "Conv": 1},
    ),
    (
        "a border of the bias, in constants beside the value",
        "(double[1,4,7,7] x) => (double[1,4,7,7] y) { a = Conv (x, w1, c) k = Reshape (c, column) s = Expand (k, side)"
        " l = Concat <axis = 3> (s, a, s) t = Expand (k, top) f = Concat <axis = 2> (t, l, t) y = Conv (f, w3, c3) }",
        {"w1": (8, 4, 1, 1), "c": (8,), "w3": (4, 8, 3, 3), "c3": (4,)},
        {"Conv": 1},
    ),
    (
        "a crop",
        "(double[1,4,7,7] x) => (double[1,4,5,7] y) { a = Conv (x, w1) s = Slice (a, one, minus, two) y = Conv (s, w2) }",
        {"w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1)},
        {"Slice": 1, "Conv": 1},
    ),
]
INTS: dict[str, tuple[int, ...]] = {
    "pads": (0, 0, 1, 0, 0, 0, 3, 2),
    "index": (4, -1, 0),
    "split": (0, 2, 3, 5, 6),
    "merged": (2, -1, 5, 6),
    "rows": (0, 0, -1),
    "ring": (0, 0, 1, 1, 0, 0, 1, 1),
    "column": (1, -1, 1, 1),
    "side": (1, 8, 7, 1),
    "top": (1, 8, 1, 9),
    "one": (1,),
    "minus": (-1,),
    "two": (2,),
}


@pytest.mark.parametrize(
    ("text", "weights", "left"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_region_becomes_one_node(
    text: str, weights: dict[str, tuple[int, ...]], left: dict[str, int]
) -> None:
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    given: dict[str, tuple[int, ...] | np.ndarray] = dict(weights)
    given |= {name: np.array(numbers) for name, numbers in INTS.items() if name in words}
    if "zero" in words:
        given["zero"] = np.array(0.0)
    after, report = folded(written(f"g {text}", given))
    assert ops(after) == left, str(report)


def test_names_metadata_opset_functions_and_symbols_survive() -> None:
    model = written(BRANCHES.replace("double[2,4,7,9]", "double[n,4,h,w]"), BRANCH_WEIGHTS)
    model.metadata_props.append(onnx.StringStringEntryProto(key="who", value="us"))
    model.producer_name, model.doc_string, model.model_version = "them", "a net", 7
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    function = onnx.helper.make_function(
        "mine",
        "Twice",
        ["a"],
        ["b"],
        [onnx.helper.make_node("Add", ["a", "a"], ["b"])],
        [onnx.helper.make_opsetid("", 18)],
    )
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    model.graph.node.append(onnx.helper.make_node("Twice", ["y"], ["z"], domain="mine"))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("z", onnx.TensorProto.DOUBLE, ["n", 4, "h", "w"])
    )
    model.graph.value_info.append(
        onnx.helper.make_tensor_value_info("s", onnx.TensorProto.DOUBLE, ["n", 4, "h", "w"])
    )
    after, report = folded(model, {"n": 1, "h": 5, "w": 8}, {"n": 3, "h": 1, "w": 2})
    assert ops(after) == {"Conv": 1, "Relu": 1, "Twice": 1}
    for kept in ("metadata_props", "opset_import", "functions"):
        assert list(getattr(after, kept)) == list(getattr(model, kept))
    assert list(after.graph.input) == list(model.graph.input)
    assert list(after.graph.output) == list(model.graph.output)
    assert [info for info in after.graph.value_info if info.name == "s"] == list(model.graph.value_info)
    assert (after.producer_name, after.doc_string, after.model_version) == ("them", "a net", 7)
    assert any("Twice" in note for note in report.notes)


def test_a_region_that_is_an_output_keeps_its_name() -> None:
    after, _ = folded(
        written(
            "g (double[1,4,5,5] x) => (double[1,4,5,5] y) {a = Conv (x, w) y = Neg (a)}", {"w": (4, 4, 1, 1)}
        )
    )
    assert [node.output[0] for node in after.graph.node] == ["y"]


def test_an_inner_value_that_is_an_output_is_a_cut() -> None:
    text = "g (double[1,4,5,5] x) => (double[1,4,5,5] a, double[1,4,5,5] y) {a = Conv (x, w) b = Neg (a) y = Neg (b)}"
    after, _ = folded(written(text, {"w": (4, 4, 1, 1)}))
    assert ops(after)["Conv"] == 1
    assert {"a", "y"} <= {name for node in after.graph.node for name in node.output}


SUBGRAPH = """g (double[1,4,5,5] x, bool c) => (double[1,4,5,5] y) {
    a = Conv (x, w)
    b = Neg (a)
    d = Neg (b)
    r = If (c) <
        then_branch = t () => (double[1,4,5,5] p) { q = Conv (a, w2) p = Neg (q) },
        else_branch = e () => (double[1,4,5,5] p2) { p2 = Neg (x) }
    >
    y = Add (d, r)
}"""


def branches(model: onnx.ModelProto) -> list[tuple[str, list[str], list[str]]]:
    graphs = [a.g for node in model.graph.node if node.op_type == "If" for a in node.attribute]
    return [(n.op_type, list(n.input), list(n.output)) for g in graphs for n in g.node]


def test_subgraphs_survive_and_what_they_read_is_kept() -> None:
    model = written(SUBGRAPH, {"w": (4, 4, 1, 1), "w2": (4, 4, 1, 1)})
    after, _ = reparameterize_onnx(model)
    onnx.checker.check_model(after)
    assert branches(after) == branches(model)
    assert "a" in {name for node in after.graph.node for name in node.output}
    x = drawn(written("g (double[1,4,5,5] x) => (double[1,4,5,5] y) {y = Neg (x)}", {}))["x"]
    for flag in (True, False):
        feeds = {"x": x, "c": torch.tensor(flag)}
        assert fold_error(run(after, feeds)[0], run(model, feeds)[0]) <= 1e-10


def test_weights_that_are_computed_are_constants() -> None:
    text = (
        "g (double[1,4,5,5] x) => (double[1,4,5,5] y) { n = ReduceL2 <keepdims = 1> (v, axes) u = Div (v, n) w = Mul (u, s)"
        " a = Conv (x, w) y = BatchNormalization (a, g1, b1, m1, var1) }"
    )
    weights = {
        "v": (4, 4, 1, 1),
        "s": (4, 1, 1, 1),
        "axes": np.array([1, 2, 3]),
        **{k: NORMS[k] for k in ("g1", "b1", "m1", "var1")},
    }
    after, _ = folded(written(text, weights))
    assert ops(after) == {"Conv": 1}
    assert len(after.graph.initializer) == 2


def test_a_shared_weight_is_read_by_both_and_kept_while_one_needs_it() -> None:
    text = "g (double[1,4,5,5] x) => (double[1,4,5,5] y) {a = Conv (x, w) b = Neg (a) r = Relu (b) y = Conv (r, w)}"
    after, _ = folded(written(text, {"w": (4, 4, 1, 1)}))
    assert ops(after) == {"Conv": 2, "Relu": 1}
    assert "w" in {i.name for i in after.graph.initializer}


def test_initializers_that_may_be_fed_are_no_constants() -> None:
    model = written(BRANCHES, BRANCH_WEIGHTS)
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in model.graph.initializer
    )
    report = explain_onnx(model)
    assert not report.changed
    assert any("may be fed" in note for note in report.notes)


def test_what_does_not_pay_stays() -> None:
    text = "g (double[1,32,9,9] x) => (double[1,32,9,9] y) {a = Conv (x, w1) y = Conv (a, w2)}"
    report = folded(written(text, {"w1": (2, 32, 1, 1), "w2": (32, 2, 1, 1)}))[1]
    assert not report.changed
    assert any("more work" in refused.reason for refused in report.refused)


def test_a_border_after_a_bias_is_refused_with_the_reason() -> None:
    text = "g (double[1,4,9,9] x) => (double[1,4,9,9] y) {a = Conv (x, w1, c1) y = Conv <pads = [1,1,1,1]> (a, w3)}"
    report = folded(written(text, {"w1": (4, 4, 1, 1), "c1": (4,), "w3": (4, 4, 3, 3)}))[1]
    assert not report.changed
    assert ["the border is 0 and not the bias" in refused.reason for refused in report.refused] == [True]


def test_where_chooses_by_name_or_by_node() -> None:
    model = written(
        BRANCHES.replace("y = Relu (s)", "r = Relu (s) t = Conv (r, w1) y = Neg (t)"), BRANCH_WEIGHTS
    )
    for i, node in enumerate(model.graph.node):
        node.name = f"{'stem' if i < 6 else 'head'}/{node.op_type}"
    assert ops(reparameterize_onnx(model, where="head/*")[0]) == {
        "Conv": 3,
        "BatchNormalization": 3,
        "Sum": 1,
        "Relu": 1,
    }
    chosen = reparameterize_onnx(
        model, where=lambda name, node: node.op_type == "Sum" and name.startswith("stem")
    )[0]
    assert ops(chosen) == {"Conv": 2, "Relu": 1, "Neg": 1}
    assert not reparameterize_onnx(model, where="nobody")[1].changed


def test_an_ir_model_gives_an_ir_model_and_the_fold_is_deterministic() -> None:
    model = written(BRANCHES, BRANCH_WEIGHTS)
    after, report = reparameterize_onnx(ir.from_proto(model))
    assert isinstance(after, ir.Model)
    again, same = reparameterize_onnx(model)
    assert ir.to_proto(after).SerializeToString() == again.SerializeToString()
    assert str(report) == str(same)
    assert not reparameterize_onnx(again)[1].changed


def test_an_unknown_cost_is_an_error() -> None:
    with pytest.raises(ValueError, match="cost='speed'"):
        reparameterize_onnx(written(BRANCHES, BRANCH_WEIGHTS), cost="speed")


def test_a_norm_for_another_number_of_channels_is_left_alone() -> None:
    """Such a file runs nowhere; it must not break the reading either."""
    weights = BRANCH_WEIGHTS | dict.fromkeys(("g1", "b1", "m1", "var1"), (5,))
    model = written(BRANCHES, BRANCH_WEIGHTS)
    for tensor in model.graph.initializer:
        if weights[tensor.name] == (5,):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(5), tensor.name))
    report = explain_onnx(model)
    assert [fold.place for fold in report.folded] == ["Conv (b)"]
    assert any("the shape of an is not known" in refused.reason for refused in report.refused)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("{ a = Mul (x, k) y = Add (a, c) }", {"k": (4,), "c": (4,)}),
        ("{ a = MatMul (x, w1) y = Add (a, c) }", {"w1": (4, 4), "c": (4,)}),
    ],
)
def test_a_product_and_a_sum_are_not_replaced_by_the_same_again(
    text: str, weights: dict[str, tuple[int, ...]]
) -> None:
    model = written(f"g (double[2,3,4] x) => (double[2,3,4] y) {text}", weights)
    assert not folded(model)[1].changed


@pytest.mark.parametrize("true", [True, False])
def test_a_border_may_be_written_while_the_axes_stand_otherwise(true: bool) -> None:
    text = """g (double[2,4,5,6] x) => (double[2,4,5,6] y) {
        a = Conv (x, w1, c1) p = Pad (a, ring)
        r = Transpose <perm = [2, 0, 1, 3]> (p) r1 = ScatterND (r, first, side) r2 = ScatterND (r1, below, side)
        s = Transpose <perm = [3, 2, 1, 0]> (r2) s1 = ScatterND (s, first, top) s2 = ScatterND (s1, right, top)
        t = Transpose <perm = [2, 1, 3, 0]> (s2) y = Conv (t, w3)
    }"""
    bias = np.linspace(-1.0, 1.0, 8) if true else np.arange(8.0)
    given: dict[str, tuple[int, ...] | np.ndarray] = {
        "w1": (8, 4, 1, 1),
        "c1": np.linspace(-1.0, 1.0, 8),
        "w3": (4, 8, 3, 3),
    }
    given |= {"ring": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "first": np.array([[0]])}
    given |= {"below": np.array([[6]]), "right": np.array([[7]])}
    given["side"] = np.broadcast_to(bias.reshape(1, 1, 8, 1), (1, 2, 8, 8)).copy()
    given["top"] = np.broadcast_to(bias.reshape(1, 8, 1, 1), (1, 8, 2, 7)).copy()
    assert ops(folded(written(text, given))[0])["Conv"] == (1 if true else 2)
