"""Modules one after the other, some of them affine as a whole: a sum or a concatenation in a child, a norm behind it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontends.modules.checks import (
    SMALL,
    conv_norm,
    convolutions,
    fold,
    norms_left,
    x_of,
)
from tests.graphs import Owned
from unbranch import reparameterize
from unbranch.blocks import LinearBottleneck


class Mixed(nn.Module):
    """Parts of the channels through a convolution each, then stacked, as MixNet does."""

    def __init__(self, parts: int = 2) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(4 // parts, 6 // parts, 1) for _ in range(parts))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(4 // len(self.convolutions), 1)
        return torch.cat([layer(part) for layer, part in zip(self.convolutions, parts, strict=True)], 1)


class NormAct(nn.BatchNorm2d):
    """A norm that runs more behind itself, in one module."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(
            F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        )


class Block(nn.Module):
    """Its residual stays in its own forward; the end of what folds lies inside the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.norm = Mixed(), NormAct(6)
        self.back = conv_norm(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(self.norm(self.wide(x)))


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.big, self.small = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.big(x) + self.small(x)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class ActiveSums(Sums):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(x))


def test_a_norm_joins_the_whole_module_before_it() -> None:
    model = nn.Sequential(Block(), Block())
    folded, report = fold(model)
    assert convolutions(folded) == 4
    assert norms_left(folded) == 0
    assert {place.how for place in report.folded} == {"series", "chain"}
    assert report.folded[0].place == "0.wide"
    assert type(folded[0]) is Block, "the block's own class stays"
    assert not reparameterize(folded, x_of(*SMALL), return_report=True)[1].changed


def test_the_first_of_several_whole_modules_becomes_the_convolution() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.sums, self.last = Scale(), Sums(), NormAct(4)

        def forward(self, x: Tensor) -> Tensor:
            return F.hardswish(self.last(self.sums(self.scale(x))))

    folded, report = fold(nn.Sequential(Net()))
    assert [place.how for place in report.folded] == ["series"]
    assert report.folded[0].place == "0.sums"
    assert isinstance(folded[0].sums, nn.Conv2d)
    assert isinstance(folded[0].scale, nn.Identity)


def test_a_sum_outside_the_modules_is_no_series() -> None:
    class Net(Sums):
        def __init__(self) -> None:
            super().__init__()
            self.last = NormAct(4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.last(super().forward(x)))

    model = nn.Sequential(Net(), nn.Conv2d(4, 4, 1))
    _, report = fold(model)
    assert "series" not in {place.how for place in report.folded}


def test_what_was_folded_before_is_what_a_later_fold_puts_behind_its_convolution() -> None:
    class Own(nn.Module):
        """A convolution of its own, then a child whose own forward must be rewritten."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4, 1, 1))
            self.rest = ActiveSums()

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(F.conv2d(x, self.weight))

    model = nn.Sequential(nn.Conv2d(4, 4, 1), Own(), nn.ReLU())
    folded, _ = fold(model)
    assert convolutions(folded) == 2
    assert not reparameterize(folded, x_of(*SMALL), return_report=True)[1].changed


class Tokens(nn.Module):
    """A layer over channels that come last."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(into, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)


def test_a_layer_over_the_last_axis_becomes_a_convolution_with_what_stands_around_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.wide, self.back = Tokens(4, 6), Tokens(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.hardswish(self.last(self.back(self.wide(self.first(x)))))

    folded, report = fold(nn.Sequential(Net(), nn.ReLU()))
    assert [(place.how, place.before.ops, place.after.ops) for place in report.folded] == [("series", 8, 1)]
    assert folded[0].wide.weight.shape == (4, 4, 1, 1)
    assert not reparameterize(folded, x_of(*SMALL), return_report=True)[1].changed


def test_a_reshape_that_counts_channels_is_given_as_many_as_before() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.back = nn.Conv2d(4, 8, 1), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.wide(x).reshape(-1, 8, x.shape[2] * x.shape[3]).transpose(1, 2)
            return F.relu(self.back(rows))

    fold(Net())


@pytest.mark.parametrize("first", [True, False])
def test_a_module_that_computes_around_its_layer_is_replaced_with_it(first: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm2d(4), nn.Conv2d(6, 4, 3)
            self.owned = Owned(nn.Conv2d(4, 6, 1), 4 if first else 6, 2, first)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.last(self.owned(self.norm(x))))

    folded, report = fold(Net())
    assert [(place.place, place.how, place.after.ops) for place in report.folded] == [("owned", "chain", 1)]
    assert folded.owned.weight.shape == (4, 4, 3, 3)


def test_a_bottleneck_in_series_with_its_own_border_folds_whole() -> None:
    folded, report = fold(nn.Sequential(LinearBottleneck(4, 6), nn.ReLU(), LinearBottleneck(6, 4)))
    assert convolutions(folded) == 2
    assert all(place.after.ops == 1 for place in report.folded)


def test_a_chain_leaves_what_its_container_moves_in_between() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.conv(x).flatten(2)))

    folded, report = fold(nn.Sequential(Net(), nn.ReLU()))
    assert [(place.place, place.how) for place in report.folded] == [("0.conv", "chain")]
    assert type(folded[0]) is Net
    assert norms_left(folded) == 0
