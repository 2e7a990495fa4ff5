"""Half types: worked out in float64, cast once, refused where the cast cannot hold the numbers."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontends.modules.checks import SMALL, Branches, conv_norm, drawn, x_of
from tests.support import fold_error
from unbranch import explain, reparameterize


def test_weights_beyond_float16_are_not_folded() -> None:
    model = drawn(conv_norm())
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    with torch.no_grad():
        norm.running_var.fill_(1e-6)
        norm.weight.fill_(2e4)
    norm.eps = 0.0
    x = 1e-6 * x_of(*SMALL)
    report = explain(model.half(), x.half())
    assert not report.changed
    assert "beyond float16" in str(report)
    assert explain(model.bfloat16(), x.bfloat16()).changed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_no_further_off_than_a_cast_of_the_exact_fold(dtype: torch.dtype) -> None:
    for seed in range(5):
        stored = drawn(nn.Sequential(Branches(8), Branches(8), conv_norm(8, 8), nn.ReLU()), seed).to(dtype)
        x = x_of(1, 8, 16, 16, seed=seed).to(dtype)
        folded = reparameterize(stored, x)
        assert {p.dtype for p in folded.parameters()} == {dtype}
        exact = copy.deepcopy(stored).double()
        cast = reparameterize(exact, x.double()).to(dtype)
        with torch.no_grad():
            expected = exact(x.double())
            ours, theirs = fold_error(folded(x), expected), fold_error(cast(x), expected)
        assert ours <= theirs * 1.001, f"{ours} and {theirs}"
        for mine, best in zip(folded.parameters(), cast.parameters(), strict=True):
            assert torch.equal(mine, best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layers_without_norms_are_added_in_float64_and_cast_once(dtype: torch.dtype) -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(8, 6, 3, 2, 1, groups=2, bias=i < 2) for i in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.a(x) + (self.b(x) - 0.3 * self.c(x)))

    model = Three().to(dtype).eval()
    folded = reparameterize(model, torch.zeros(1, 8, 9, 7, dtype=dtype))
    a, b, c = (layer.double() for layer in copy.deepcopy(model).children())
    [layer] = (m for m in folded.modules() if isinstance(m, nn.Conv2d))
    assert torch.equal(layer.weight, (a.weight + b.weight - 0.3 * c.weight).to(dtype))
    assert torch.equal(layer.bias, (a.bias + b.bias).to(dtype))
