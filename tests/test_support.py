"""The helpers that other tests lean on."""

import math

import pytest
import torch
from torch import nn

from tests.support import fold_error, randomize, randomize_norms


def test_every_statistic_of_a_norm_is_drawn(generator: torch.Generator) -> None:
    net = nn.Sequential(
        nn.BatchNorm2d(6), nn.BatchNorm1d(5, affine=False), nn.BatchNorm2d(4, track_running_stats=False)
    )
    randomize_norms(net, generator)
    for norm in net[:2]:
        state = norm.state_dict()
        assert (state["running_var"] > 0).all()
        for name in {"weight", "bias", "running_mean", "running_var"} & state.keys():
            assert state[name].unique().numel() == state[name].numel()
            assert not torch.isin(state[name], torch.tensor([0.0, 1.0])).any()


class Growing(nn.Module):
    """A residual sum, whose values would grow with every layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = 4 * x
        return self.norm(y + self.conv(y))


def test_outputs_of_a_deep_network_are_of_order_one(generator: torch.Generator) -> None:
    net = nn.Sequential(*(Growing(8) for _ in range(40))).double()
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64, generator=generator)
    out = randomize(net, generator, x).eval()(x)
    assert 0.1 < out.std() < 10
    assert all(not layer._forward_pre_hooks for layer in net.modules())


def test_settling_leaves_each_modules_mode(generator: torch.Generator) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).eval()).train()
    net[1].eval()
    randomize(net, generator, torch.randn(1, 3, 1, 1))
    assert [module.training for module in net.modules()] == [True, True, False]


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([0.0, 0.5], [0.0, 0.25], 0.25),  # small values are measured absolutely
        ([0.0, 90.0], [0.0, 100.0], 0.1),  # large ones against the expected output
        ([], [], 0.0),
    ],
)
def test_error_of_a_fold(a: list[float], b: list[float], error: float) -> None:
    assert fold_error(torch.tensor(a), torch.tensor(b)) == pytest.approx(error, rel=1e-12)


def test_error_of_a_fold_lets_no_nan_and_no_shape_pass() -> None:
    assert math.isnan(fold_error(torch.tensor([math.nan]), torch.tensor([0.0])))
    assert not fold_error(torch.tensor([math.nan, 0.0]), torch.zeros(2)) <= 1
    with pytest.raises(AssertionError, match="cannot agree"):
        fold_error(torch.zeros(2, 1), torch.zeros(2))
