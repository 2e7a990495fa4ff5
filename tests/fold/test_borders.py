"""Borders that hold a constant: filled in one pad or slab by slab, right, nearly right and wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontends.modules.checks import convolutions, drawn, errors, fold, x_of
from unbranch import reparameterize
from unbranch.affine import NotLinear
from unbranch.fold.border import Border, same_constant

Fill = Callable[[Tensor, Tensor], Tensor]


def slices(y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:, :, 0:1] = b
    y[:, :, -1:] = b
    y[:, :, :, 0:1] = b
    y[:, :, :, -1:] = b
    return y


def rows(y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:, :, 0, :] = b[..., 0]
    y[:, :, -1, :] = b[..., 0]
    y[:, :, :, 0] = b[..., 0]
    y[:, :, :, -1] = b[..., 0]
    return y


def wide(y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, (2, 1, 1, 2), value=7.0)
    y[:, :, :1] = b
    y[:, :, -2:] = b
    y[..., :2] = b
    y[..., -1:] = b
    return y


def copied(y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:, :, 0:1].copy_(b)
    y[:, :, -1:].copy_(b)
    y[..., 0:1].copy_(b)
    y[..., -1:].copy_(b)
    return y


def forgotten_edge(y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:, :, 0:1] = b
    y[:, :, -1:] = b
    y[:, :, :, 0:1] = b
    return y


def overwritten_inside(y: Tensor, b: Tensor) -> Tensor:
    y = slices(y, b)
    y[:, :, 1:2] = b
    return y


def overwritten_corner(y: Tensor, b: Tensor) -> Tensor:
    y = slices(y, b)
    y[:, :, 0:1] = b * 2
    return y


def absolute_position(y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    y[:, :, 0:1] = b
    y[:, :, 10:11] = b
    y[:, :, :, 0:1] = b
    y[:, :, :, 10:11] = b
    return y


def read_too_early(y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, (1, 1, 1, 1))
    early = y.mean()
    return slices(y[:, :, 1:-1, 1:-1], b) + early * 0


class Filled(nn.Module):
    """1x1, a border that a test fills, an unpadded 3x3: the widened branch of super-resolution blocks."""

    def __init__(self, fill: Fill, norm: bool = False, error: float = 0.0) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 3)
        self.norm = nn.BatchNorm2d(8) if norm else None
        self.fill, self.error = fill, error

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.widen(x)
        b: Any = self.widen.bias
        if self.norm is not None:
            n: Any = self.norm
            y = n(y)
            b = F.batch_norm(b[None], n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)[0]
        return F.relu(self.narrow(self.fill(y, b.view(1, -1, 1, 1) * (1 + self.error))))


RIGHT: list[Fill] = [slices, rows, wide, copied]
WRONG: list[Fill] = [
    forgotten_edge,
    overwritten_inside,
    overwritten_corner,
    absolute_position,
    read_too_early,
]


@pytest.mark.parametrize("fill", RIGHT, ids=lambda fill: fill.__name__)
@pytest.mark.parametrize("norm", [False, True])
def test_a_border_filled_with_the_bias_folds(fill: Fill, norm: bool) -> None:
    folded, report = fold(nn.Sequential(Filled(fill, norm)))
    assert report.changed
    assert convolutions(folded) == 1, f"{report}"


@pytest.mark.parametrize("fill", WRONG, ids=lambda fill: fill.__name__)
def test_a_border_that_holds_anything_else_stays(fill: Fill) -> None:
    folded, _ = fold(nn.Sequential(Filled(fill)))
    assert convolutions(folded) == 2


@pytest.mark.parametrize(
    ("error", "folds"), [(1e-3, False), (1e-5, False), (torch.finfo(torch.float32).eps, True)]
)
def test_a_border_may_be_off_by_rounding_only(error: float, folds: bool) -> None:
    model = drawn(nn.Sequential(Filled(slices, error=error))).float()
    x = x_of(1, 4, 9, 9).float()
    folded = reparameterize(model, x)
    assert convolutions(folded) == (1 if folds else 2)
    assert max(errors(folded, model, x)) <= 1e-5


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("bias", [0.0, 0.5, None])
def test_a_constant_pad_folds_where_its_value_is_the_bias(value: float, bias: float | None) -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 1, bias=bias is not None), nn.ConstantPad2d(1, value), nn.Conv2d(8, 4, 3), nn.ReLU()
    )
    drawn(model)
    if bias is not None:
        nn.init.constant_(model[0].bias, bias)  # pyright: ignore[reportArgumentType]
    x = x_of(1, 4, 9, 9)
    folded = reparameterize(model, x)
    assert convolutions(folded) == (1 if value == (bias or 0.0) else 2)
    assert max(errors(folded, model, x, x_of(2, 4, 5, 8))) <= 1e-10


def test_a_padded_second_kernel_after_a_bias_is_refused() -> None:
    """The field's trap: inside the picture the two agree, at its border they differ."""
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU())
    folded, _ = fold(model)
    assert convolutions(folded) == 2
    bare = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU())
    folded, _ = fold(bare)
    assert convolutions(folded) == 1


def filled(*pads: tuple[int, int]) -> Border:
    return Border.filled(pads, torch.zeros(2, dtype=torch.float64))


def test_a_write_must_lie_at_the_same_place_of_every_size() -> None:
    one = torch.ones(2, dtype=torch.float64)
    border = filled((1, 2))
    for start, stop in ((0, 1), (-2, None), (-1, None), (-2, -1)):
        border.write(0, start, stop, 9, one)
    for start, stop in ((7, 9), (8, None), (-9, -8), (0, -8), (0, 2), (-3, None), (3, 4), (2, 2)):
        with pytest.raises(NotLinear):
            border.write(0, start, stop, 9, one)


def test_the_last_write_to_a_cell_counts() -> None:
    one, two = torch.ones(2, dtype=torch.float64), torch.full((2,), 2.0, dtype=torch.float64)
    border = filled((1, 1), (1, 1))
    assert border.holds(torch.zeros(2, dtype=torch.float64))
    for axis in (0, 1):
        border = border.write(axis, 0, 1, 5, two).write(axis, -1, None, 5, two)
    assert border.holds(two)
    border = border.write(0, 0, 1, 5, one)
    assert not border.holds(two)
    assert not border.holds(one)


def test_rounding_is_measured_in_the_stored_type() -> None:
    exact = torch.tensor([1.0, -3.0], dtype=torch.float64)
    assert same_constant(exact.float() * (1 + 2e-7), exact)
    assert not same_constant(exact * (1 + 2e-7), exact)
    assert same_constant(exact.half() * 1.001, exact)
    assert not same_constant(exact.float() * (1 + 1e-5), exact)
    assert not same_constant(torch.tensor([float("nan"), 0.0]), exact)
