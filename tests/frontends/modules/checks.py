"""What the tests of the module front end share: small networks with random numbers, folded and compared at two sizes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support import fold_error, randomize
from unbranch import Report, reparameterize

SMALL, ODD = (1, 4, 9, 9), (2, 4, 13, 11)


def x_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(model: nn.Module, seed: int = 0) -> Any:
    """Random weights and statistics, float64, eval."""
    return randomize(model.double(), torch.Generator().manual_seed(seed)).eval()


def conv_norm(into: int = 4, out: int = 4, kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, kernel, padding=kernel // 2, **options), nn.BatchNorm2d(out))


@torch.no_grad()
def errors(a: nn.Module, b: nn.Module, *inputs: Tensor) -> list[float]:
    return [fold_error(a(x), b(x)) for x in inputs]


def fold(model: nn.Module, *shapes: Sequence[int], **options: Any) -> tuple[Any, Report]:
    """Draw, fold on the first shape, and hold against the original on every one."""
    drawn(model)
    inputs = [x_of(*shape, seed=i) for i, shape in enumerate(shapes or (SMALL, ODD))]
    folded, report = reparameterize(model, inputs[0], return_report=True, **options)
    found = errors(folded, model, *inputs)
    assert max(found) <= 1e-10, f"errors {found}\n{report}"
    return folded, report


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())


def norms_left(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


class Branches(nn.Module):
    """RepVGG's sum, written in its parent's forward."""

    def __init__(self, channels: int = 4, **options: Any) -> None:
        super().__init__()
        self.big = conv_norm(channels, channels, 3, **options)
        self.small = conv_norm(channels, channels, 1, **options)
        self.same = nn.BatchNorm2d(channels)
        self.tag = "kept"

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.big(x) + self.small(x) + self.same(x))


class Sum(Branches):
    """The sum alone: affine as a whole."""

    def forward(self, x: Tensor) -> Tensor:
        return self.big(x) + self.small(x) + self.same(x)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
