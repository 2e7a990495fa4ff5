"""What other people's networks do that broke the module front end once: sizes, lists and values that hold nothing."""

import pytest
import torch
from torch import Tensor, nn

from tests.support import fold_error, randomize
from unbranch import explain, reparameterize


class Grid(nn.Module):
    """Adds a grid of the size of what it is given, made with a call that torch takes no number but a plain one in."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.token = nn.Parameter(torch.rand(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        columns = torch.arange(y.shape[3], dtype=y.dtype).expand(y.shape[2], y.shape[3])
        return y * self.token.expand(y.shape[0], -1, -1, -1) + columns


def test_sizes_that_torch_takes_only_as_plain_numbers(generator: torch.Generator) -> None:
    model, x = Grid().eval(), torch.rand(1, 3, 9, 8, generator=generator).double()
    randomize(model.double(), generator, x)
    folded, report = reparameterize(model, x, return_report=True)
    assert len(report.folded) == 1
    assert any("size" in refused.reason for refused in report.refused)
    for value in (x, torch.rand(3, 3, 7, 12, generator=generator).double()):
        assert fold_error(folded(value), model(value)) <= 1e-10


class Dense(nn.Sequential):
    """Every layer is handed the list of all values so far."""

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for layer in self:
            values.append(layer(values))
        return torch.cat(values, 1)


class Joined(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(channels, 4, 1)

    def forward(self, values: list[Tensor]) -> Tensor:
        x = torch.cat(values, 1)
        return self.one(x) + self.two(x)


def test_lists_that_grow_after_they_were_handed_over(generator: torch.Generator) -> None:
    model, x = Dense(Joined(3), nn.Sequential(Joined(7))).eval(), torch.rand(1, 3, 6, 6, dtype=torch.float64)
    randomize(model.double(), generator, x)
    folded, report = reparameterize(model, x, return_report=True)
    assert fold_error(folded(x), model(x)) <= 1e-10, str(report)


class FoundNothing(nn.Module):
    """Picks what is above a threshold, which may be nothing, and scales it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).flatten(2)[0].T
        return (y[y[:, 0] > 1e6] * 2.0 + 1.0).reshape(-1, 2, 2) * 0.5


def test_values_that_hold_nothing(generator: torch.Generator) -> None:
    model, x = FoundNothing().eval(), torch.rand(1, 3, 6, 6, dtype=torch.float64)
    randomize(model.double(), generator, x)
    folded, report = reparameterize(model, x, return_report=True)
    assert folded(x).shape == (0, 2, 2)
    assert len(report.folded) == 1


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_a_padding_that_runs_beside_its_convolution_is_counted(mode: str, generator: torch.Generator) -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode, bias=False)
    model, x = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU()).eval(), torch.rand(1, 3, 6, 6)
    randomize(model, generator, x)
    alone = explain(nn.Sequential(conv, nn.ReLU()).eval(), x)
    assert not alone.changed, str(alone)
    folded, report = reparameterize(model, x, return_report=True)
    assert report.after.ops == report.before.ops - 1
    assert explain(folded, x).before.ops == report.after.ops
    assert not explain(folded, x).changed
