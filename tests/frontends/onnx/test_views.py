"""Runs of reshapes and transposes, and ops that change nothing, in a file in which something folds."""

import numpy as np
import onnx
import pytest

from tests.frontends.onnx.models import folded, ops, written

NORM = {**dict.fromkeys(("g", "b", "m", "var"), (4,)), "w": (4, 4, 1, 1)}
HEAD = "c = Conv (x, w) n = BatchNormalization (c, g, b, m, var) r = Relu (n)"


def model(shape: str, tail: str, result: str, **constants: object) -> onnx.ModelProto:
    """``tail`` makes y of r, which is the input's shape."""
    given = {name: np.asarray(value) for name, value in constants.items()}
    return written(f"g (double[{shape}] x) => (double[{result}] y) {{ {HEAD} {tail} }}", NORM | given)


CASES: list[tuple[str, str, str, dict[str, object], dict[str, int]]] = [
    (
        "there and back",
        "t = Transpose <perm = [0, 2, 3, 1]> (r) y0 = Transpose <perm = [0, 3, 1, 2]> (t) y = Exp (y0)",
        "2,4,6,5",
        {},
        {"Exp": 1},
    ),
    (
        "two transposes",
        "t = Transpose <perm = [0, 2, 3, 1]> (r) y = Transpose <perm = [0, 2, 1, 3]> (t)",
        "2,5,6,4",
        {},
        {"Transpose": 1},
    ),
    (
        "two reshapes",
        "t = Reshape (r, s) y = Reshape (t, z)",
        "2,12,10",
        {"s": [2, 24, 5], "z": [2, 12, 10]},
        {"Reshape": 1},
    ),
    (
        "a transpose of what has one entry is a reshape",
        "t = Reshape (r, s) u = Unsqueeze (t, a) y = Transpose <perm = [1, 0, 2, 3]> (u)",
        "1,2,4,30",
        {"s": [2, 4, 30], "a": [0]},
        {"Reshape": 1},
    ),
    (
        "keys of an attention",
        "t = Reshape (r, s) u = Transpose <perm = [0, 2, 1]> (t) v = Unsqueeze (u, a) p = Reshape (v, k)"
        " q = Transpose <perm = [0, 2, 1]> (p) y0 = Reshape (q, z) y = Exp (y0)",
        "2,1,4,30",
        {"s": [2, 4, 30], "a": [1], "k": [-1, 30, 4], "z": [2, 1, 4, 30]},
        {"Reshape": 1, "Exp": 1},
    ),
    (
        "queries of an attention: a reshape and a transpose",
        "t = Reshape (r, s) u = Transpose <perm = [0, 2, 1]> (t) v = Unsqueeze (u, a) y = Exp (v)",
        "2,1,30,4",
        {"s": [2, 4, 30], "a": [1]},
        {"Reshape": 1, "Transpose": 1, "Exp": 1},
    ),
    (
        "axes merged after a transpose",
        "t = Transpose <perm = [0, 2, 3, 1]> (r) u = Unsqueeze (t, a) y = Reshape (u, z)",
        "2,30,4",
        {"a": [1], "z": [2, 30, 4]},
        {"Transpose": 1, "Reshape": 1},
    ),
    (
        "a sum with zeros, a product with ones, a whole slice",
        "t = Add (o, r) u = Mul (t, i) v = Slice (u, s0, s1) y = Exp (v)",
        "2,4,6,5",
        {"o": np.zeros((4, 6, 5)), "i": np.ones((1, 4, 1, 1)), "s0": [0], "s1": [2**31 - 1]},
        {"Exp": 1},
    ),
    (
        "an output keeps its name",
        "t = Transpose <perm = [0, 2, 3, 1]> (r) u = Transpose <perm = [0, 3, 1, 2]> (t) y = Identity (u)",
        "2,4,6,5",
        {},
        {"Identity": 1},
    ),
]


@pytest.mark.parametrize(
    ("tail", "result", "constants", "left"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_views_are_as_few_as_their_result_needs(
    tail: str, result: str, constants: dict[str, object], left: dict[str, int]
) -> None:
    before = model("2,4,6,5", tail, result, **constants)
    after, report = folded(before)
    assert ops(after) == {"Conv": 1, "Relu": 1, **left}
    assert [value.name for value in after.graph.output] == ["y"]
    assert report.after.ops == sum(n.op_type != "Identity" for n in after.graph.node)


def test_a_view_that_others_read_stays() -> None:
    tail = (
        "t = Transpose <perm = [0, 2, 3, 1]> (r) e = Exp (t) f = Transpose <perm = [0, 3, 1, 2]> (t)"
        " h = Transpose <perm = [0, 3, 1, 2]> (e) y = Add (f, h)"
    )
    after, _ = folded(model("2,4,6,5", tail, "2,4,6,5"))
    assert ops(after) == {"Conv": 1, "Relu": 1, "Transpose": 2, "Exp": 1, "Add": 1}


def test_sizes_that_may_change_are_asked_of_the_source() -> None:
    tail = "t = Reshape (r, s) u = Transpose <perm = [0, 2, 1]> (t) v = Transpose <perm = [0, 2, 1]> (u) y = Unsqueeze (v, a)"
    before = model("N,4,H,5", tail, "N,4,k,1", s=[0, 4, -1], a=[3])
    after, _ = folded(before, {"N": 1, "H": 6}, {"N": 3, "H": 2})
    assert ops(after) == {"Conv": 1, "Relu": 1, "Reshape": 1}


def test_two_sizes_that_may_change_are_no_one_reshape() -> None:
    """Of N x H x 5 x 4, N first comes behind H: no fixed target says so."""
    tail = "t = Transpose <perm = [2, 0, 3, 1]> (r) u = Unsqueeze (t, a) y = Squeeze (u, a)"
    before = model("N,4,H,5", tail, "H,N,5,4", a=[2])
    after, _ = folded(before, {"N": 2, "H": 6}, {"N": 3, "H": 2})
    assert ops(after) == {"Conv": 1, "Relu": 1, "Transpose": 1}
    tail = "t = Unsqueeze (r, a) u = Transpose <perm = [3, 0, 1, 2, 4]> (t) y = Reshape (u, z)"
    before = model("N,4,H,5", tail, "H,k,5", a=[1], z=[0, -1, 5])
    after, _ = folded(before, {"N": 2, "H": 6}, {"N": 3, "H": 2})
    assert ops(after) == {"Conv": 1, "Relu": 1, "Transpose": 1, "Reshape": 1}


def test_what_is_a_view_at_one_size_only_stays() -> None:
    """The slice takes everything where H is 224, as is likely, and less where it is more."""
    before = model("1,4,H,5", "v = Slice (r, s0, s1, s2) y = Exp (v)", "1,4,k,5", s0=[0], s1=[224], s2=[2])
    after, _ = folded(before, {"H": 6}, {"H": 300})
    assert ops(after) == {"Conv": 1, "Relu": 1, "Slice": 1, "Exp": 1}


def test_a_file_in_which_nothing_folds_stays_as_it_is() -> None:
    text = (
        "g (double[2,4,6,5] x) => (double[2,4,6,5] y) {"
        " t = Transpose <perm = [0, 2, 3, 1]> (x) y = Transpose <perm = [0, 3, 1, 2]> (t) }"
    )
    after, report = folded(written(text, {}))
    assert ops(after) == {"Transpose": 2}
    assert not report.changed


def test_a_norm_over_tokens_joins_the_product_before_it() -> None:
    """MatMul, Reshape, BatchNormalization, Reshape are as much work as MatMul and Add, and more nodes."""
    text = (
        "g (double[2,5,4] x) => (double[2,5,2,3] y) { m = MatMul (x, k) f = Reshape (m, s)"
        " n = BatchNormalization (f, g, b, mean, var) y = Reshape (n, z) }"
    )
    weights = {"k": (4, 6), **dict.fromkeys(("g", "b", "mean", "var"), (6,))}
    shapes = {"s": np.asarray([10, 6]), "z": np.asarray([2, 5, 2, 3])}
    after, _ = folded(written(text, weights | shapes))
    assert ops(after) == {"MatMul": 1, "Add": 1, "Reshape": 1}
    assert ops(folded(after)[0]) == ops(after)
