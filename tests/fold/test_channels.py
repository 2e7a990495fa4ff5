"""A region is a map over channels, so some op in it must say where the channels are."""

import torch
from torch import Tensor, nn

from tests.support import fold_error
from unbranch import reparameterize


class Number(nn.Module):
    """A scale and a shift by numbers, which fit any axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 + 0.5


def test_numbers_alone_are_left() -> None:
    """Taken for a map over the last axis they would fix its length."""
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), Number(), nn.ReLU()).eval()
    folded, report = reparameterize(net, torch.randn(2, 4, 6, 9), return_report=True)
    assert not report.changed
    x = torch.randn(2, 4, 7, 11)
    with torch.no_grad():
        assert fold_error(folded(x), net(x)) == 0


def test_numbers_join_what_has_channels() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), Number(), nn.ReLU()).eval()
    folded, report = reparameterize(net, torch.randn(2, 4, 6, 9), return_report=True)
    assert len(report.folded) == 1
    x = torch.randn(2, 4, 7, 11)
    with torch.no_grad():
        assert fold_error(folded(x), net(x)) <= 1e-6
