"""Where elements stand after reshapes and permutations, held against torch; and which of those a fold passes through."""

import math
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontends.modules.checks import fold, norms_left
from unbranch.affine import NotLinear
from unbranch.fold.layout import Layout

SHAPE = (2, 12, 4, 5)


def _random_walk(rng: random.Random, x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
    if rng.random() < 0.5:
        order = rng.sample(range(x.ndim), x.ndim)
        return x.permute(order), layout.permute(order)
    sizes = list(x.shape)
    at = rng.randrange(len(sizes))
    if rng.random() < 0.5 and at + 1 < len(sizes):
        sizes[at : at + 2] = [sizes[at] * sizes[at + 1]]
    else:
        part = rng.choice([d for d in range(1, sizes[at] + 1) if sizes[at] % d == 0])
        sizes[at : at + 1] = [part, sizes[at] // part]
    return x.reshape(sizes), layout.reshape(sizes)


def test_layouts_follow_the_elements() -> None:
    """Elements carry their own original position, so what a layout claims can be read off."""
    accepted = channels = 0
    for seed in range(400):
        rng = random.Random(seed)
        x, layout = torch.arange(2 * 12 * 4 * 5).reshape(SHAPE), Layout.original(SHAPE)
        try:
            for _ in range(rng.randint(1, 6)):
                x, layout = _random_walk(rng, x, layout)
        except NotLinear:
            continue
        accepted += 1
        assert torch.equal(x, _elements(layout))
        if layout.is_original:
            assert torch.equal(x, torch.arange(x.numel()).reshape(SHAPE))
        order = layout.permutation_of(1)
        if order is not None:
            assert torch.equal(x, torch.arange(x.numel()).reshape(SHAPE)[:, list(order)])
        position = layout.position_of(1)
        if position is not None:
            channels += 1
            channel_of = (x // 20) % 12
            along = torch.arange(12).reshape([-1 if i == position else 1 for i in range(x.ndim)])
            assert torch.equal(channel_of, along.expand_as(channel_of))
    assert accepted >= 300
    assert channels >= 100


def _elements(layout: Layout) -> Tensor:
    """Which element stands where, from the layout alone."""
    strides = [math.prod(SHAPE[axis + 1 :]) for axis in range(len(SHAPE))]
    where = torch.zeros((1,) * len(layout.axes), dtype=torch.int64)
    for position, axis in enumerate(layout.axes):
        steps = torch.zeros(1, dtype=torch.int64)
        for source, stride, size in axis:
            steps = (steps[:, None] + torch.arange(size) * stride * strides[source]).flatten()
        where = where + steps.reshape([-1 if i == position else 1 for i in range(len(layout.axes))])
    return where


def test_a_reshape_that_tears_an_axis_is_refused() -> None:
    moved = Layout.original((2, 6, 5)).permute((0, 2, 1))
    with pytest.raises(NotLinear):
        moved.reshape((4, 15))
    with pytest.raises(NotLinear):
        Layout.original((2, 6)).reshape((2, 5))


class Moved(nn.Module):
    """A convolution, a way round, a scale per channel and the way back."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.tokens = nn.BatchNorm1d(6)
        self.way = way
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        n, c, h, w = y.shape
        if self.way == "channels last and back":
            y = (y.permute(0, 2, 3, 1) * self.scale).permute(0, 3, 1, 2)
        elif self.way == "flattened":
            y = self.tokens(y.flatten(2)).view(n, c, h, w)
        elif self.way == "grouped":
            y = (y.view(n, 2, 3, h, w) * 2.0).reshape(n, c, h, w)
        elif self.way == "shuffled":
            y = self.norm(y.view(n, 2, 3, h, w).transpose(1, 2).reshape(n, c, h, w))
        elif self.way == "positions mixed":
            y = self.norm(y.view(n, c, h, w).transpose(2, 3).reshape(n, c, h, w))
        elif self.way == "channels mixed with rows":
            y = self.norm(y.transpose(1, 2).reshape(n, c, h, w))
        else:
            y = y.reshape(n, h, w, c) * self.scale
        return F.relu(y)


@pytest.mark.parametrize(
    ("way", "folds"),
    [
        ("channels last and back", True),
        ("flattened", True),
        ("grouped", True),
        ("shuffled", True),
        ("positions mixed", False),
        ("channels mixed with rows", False),
        ("channels last, wrongly", False),
    ],
)
def test_ways_round(way: str, folds: bool) -> None:
    model = Moved(way)
    folded, report = fold(nn.Sequential(model), (1, 4, 7, 9), (2, 4, 8, 5), (2, 4, 6, 6))
    assert report.changed == folds, f"{report}"
    if way == "flattened":
        assert norms_left(folded) < 2


def test_another_number_of_channels_stands_where_they_stood() -> None:
    layout = Layout.original((2, 4, 5, 7)).permute((0, 2, 3, 1)).resized(1, 6)
    assert layout.sizes == (2, 5, 7, 6)
    assert layout.permute((0, 3, 1, 2)) == Layout.original((2, 6, 5, 7))
    with pytest.raises(NotLinear, match="does not stand along one axis"):
        Layout.original((2, 4, 5, 7)).reshape((2, 20, 7)).resized(1, 6)
