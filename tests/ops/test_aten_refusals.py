"""Call forms that are not linear are refused, each with its reason; the form beside it that is linear is read."""

from typing import Any

import pytest
import torch
from torch import Tensor

from unbranch.affine import Affine, NotLinear
from unbranch.fold.graph import Graph
from unbranch.ops import Map, Operand, read

X = Operand((2, 4, 7, 7), torch.float64)


def t(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def norm(training: bool, mean: Any = 1, weight: Any = 1) -> list[Any]:
    one = t(4)
    return [
        X,
        one if weight == 1 else weight,
        one,
        one if mean == 1 else mean,
        one.abs(),
        training,
        0.1,
        1e-5,
    ]


def maps_of(spelling: str, args: list[Any], kwargs: dict[str, Any]) -> list[Affine]:
    return [record.affine(4) for record in read(spelling, args, kwargs) if isinstance(record, Map)]


REFUSED: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("aten.avg_pool2d.default", [X, [2, 2], [2, 2], [0, 0], True], {}, "ceil_mode"),
    ("aten.avg_pool2d.default", [X, [3, 3], [1, 1], [1, 1], False, False], {}, "fewer taps at the border"),
    ("aten.avg_pool2d.default", [Operand((4, 7, 7)), [2, 2]], {}, "unbatched"),
    ("aten.native_batch_norm.default", norm(True), {}, "own statistics"),
    ("aten.native_batch_norm.default", norm(False, mean=None), {}, "own statistics"),
    ("aten.native_batch_norm.default", norm(False, weight=X), {}, "weight depends on the input"),
    ("aten.dropout.default", [X, 0.5, True], {}, "dropout in training"),
    ("aten.native_dropout.default", [X, 0.5, True], {}, "dropout in training"),
    ("aten.native_dropout.default", [X, 0.5, None], {}, "dropout in training"),
    (
        "aten.mul.Tensor",
        [X, torch.tensor([1.0, torch.inf, 1, 1]).view(4, 1, 1)],
        {},
        "constant is not finite",
    ),
    ("aten.mul.Tensor", [X, torch.tensor(2j)], {}, "a constant of torch.complex"),
    ("aten.div.Tensor", [X, torch.tensor(2j)], {}, "a constant of torch.complex"),
    ("aten.flatten.using_ints", [Operand(())], {}, "without axes"),
    ("aten.squeeze.dim", [Operand(()), 0], {}, "without axes"),
    ("aten.transpose.int", [Operand(()), 0, -1], {}, "without axes"),
    ("aten.movedim.int", [Operand(()), 0, 0], {}, "without axes"),
    ("aten.index_select.default", [Operand(()), 0, torch.tensor([0])], {}, "without axes"),
    ("aten.conv2d.default", [X, Operand((8, 4, 3, 3))], {}, "weight depends on the input"),
    ("aten.conv2d.default", [X, t(8, 4, 3, 3), X], {}, "bias depends on the input"),
    ("aten.conv2d.default", [Operand((4, 7, 7)), t(8, 4, 3, 3)], {}, "unbatched"),
    ("aten.conv2d.default", [t(1, 4, 7, 7), t(8, 4, 3, 3)], {}, "does not depend on the input"),
    ("aten.linear.default", [X, X], {}, "matrix depends on the input"),
    ("aten.matmul.default", [X, X], {}, "depends on the input"),
    ("aten.matmul.default", [X, t(2, 4, 7, 5)], {}, "matrix of shape"),
    ("aten.mul.Tensor", [X, X], {}, "a product of two values"),
    ("aten.mul.Tensor", [X, t(4, 7, 1)], {}, "differs from position to position"),
    ("aten.mul.Tensor", [X, t(3, 2, 4, 7, 7)], {}, "broadcasts a value"),
    ("aten.mul.Tensor", [Operand((1, 4, 7, 7)), t(5, 1, 1, 1)], {}, "broadcasts a value"),
    ("aten.mul.Scalar", [X, float("inf")], {}, "the constant inf"),
    ("aten.mul.Scalar", [X, float("nan")], {}, "the constant nan"),
    ("aten.add.Tensor", [X, Operand((2, 4, 1, 1))], {}, "broadcasts"),
    ("aten.add.Tensor", [X, Operand((4, 7, 7))], {}, "broadcasts"),
    ("aten.add.Tensor", [X, t(2, 4, 7, 7)], {}, "differs from position to position"),
    ("aten.add.Tensor", [X, 1j], {}, "the constant 1j"),
    ("aten.div.Tensor", [t(4), X], {}, "a division by a value"),
    ("aten.div.Tensor", [X, 0.0], {}, "division by zero"),
    ("aten.div.Tensor", [X, torch.zeros(4, 1, 1)], {}, "division by zero"),
    ("aten.cat.default", [[X, t(2, 4, 7, 7)], 1], {}, "does not depend on the input"),
    ("aten.slice.Tensor", [X, 1, 0, 4, -1], {}, "step -1"),
    ("aten.index.Tensor", [X, [torch.tensor([0]), torch.tensor([1])]], {}, "one list of positions"),
    ("aten.index.Tensor", [X, [None, torch.zeros(2, 2, dtype=torch.int64)]], {}, "one list of positions"),
    ("aten.index_select.default", [X, 1, Operand((2,), torch.int64)], {}, "index depends on the input"),
    ("aten.slice_scatter.default", [X, X, 2, 0, 1], {}, "what is written depends on the input"),
    ("aten.slice_scatter.default", [X, t(1), 2, 0, 4, 2], {}, "a write with step 2"),
    ("aten.reflection_pad1d.default", [Operand((4, 7)), [1, 1]], {}, "batch or channel axis"),
    ("aten.pad.default", [X, [0, 0, 0, 0, 1, 1], "replicate"], {}, "batch or channel axis"),
    ("aten._to_copy.default", [X], {"device": torch.device("cuda")}, "another device"),
    ("aten.type_as.default", [X, X], {}, "another value's"),
    ("aten.expand.default", [Operand((2, 1, 7)), [2, 4, 7]], {}, "."),
]
IDS = [f"{spelling.split('.')[1]}-{i}" for i, (spelling, *_) in enumerate(REFUSED)]


@pytest.mark.parametrize(("spelling", "args", "kwargs", "reason"), REFUSED, ids=IDS)
def test_a_form_that_is_not_linear_is_refused(
    spelling: str, args: list[Any], kwargs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(NotLinear, match=reason):
        maps_of(spelling, args, kwargs)


LINEAR: list[tuple[str, list[Any]]] = [
    ("aten.avg_pool2d.default", [X, [2, 2], [1, 1], [0, 0], True]),
    ("aten.avg_pool2d.default", [X, [3, 3], [1, 1], [1, 1], False, False, 9]),
    ("aten.avg_pool2d.default", [X, [3, 3], [1, 1], [0, 0], False, False]),
    ("aten.native_batch_norm.default", norm(False, weight=None)),
    ("aten.dropout.default", [X, 0.0, True]),
    ("aten.mul.Tensor", [X, t(4, 1, 1)]),
]


@pytest.mark.parametrize(("spelling", "args"), LINEAR)
def test_the_form_beside_it_is_read(spelling: str, args: list[Any]) -> None:
    maps_of(spelling, args, {})


@pytest.mark.parametrize(
    ("dtypes", "reason"),
    [
        ((torch.int64, torch.int64), "of torch.int64"),
        ((torch.float32, torch.float64), "changes the dtype"),
        ((torch.complex64, torch.complex64), "of torch.complex64"),
        ((torch.float16, torch.float16), None),
    ],
)
def test_whole_numbers_and_casts_are_opaque(
    dtypes: tuple[torch.dtype, torch.dtype], reason: str | None
) -> None:
    graph = Graph()
    x, y = graph.value((1, 4, 5), dtypes[0]), graph.value((1, 4, 5), dtypes[1])
    node = graph.call("aten.mul.Tensor", [x, 2], {}, [y])
    assert (node.reason is None) == (reason is None)
    assert reason is None or reason in str(node.reason)


def test_a_pool_that_is_no_convolution_is_opaque_in_the_graph() -> None:
    """What its map would be asked for later, by the plan or the totals, is asked for at once."""
    graph = Graph()
    x, y = graph.value((1, 4, 7, 7)), graph.value((1, 4, 4, 4))
    node = graph.call("aten.avg_pool2d.default", [x, [2, 2], [2, 2], [0, 0], True], {}, [y])
    assert node.records == (None,)
    assert "ceil_mode" in str(node.reason)


def test_a_norm_whose_scale_is_not_finite_is_no_map() -> None:
    with pytest.raises(NotLinear, match="scale is not finite"):
        maps_of("aten.native_batch_norm.default", [X, t(4), t(4), t(4), torch.zeros(4), False, 0.1, 0.0], {})


def test_constants_without_numbers_are_read_by_their_shape() -> None:
    on_meta = torch.empty(4, 1, 1, device="meta")
    maps = [read(f"aten.{op}.Tensor", [X, on_meta], {})[0] for op in ("mul", "div", "add")]
    assert all(isinstance(record, Map) and record.axis == 1 for record in maps)
