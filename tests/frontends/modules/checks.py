"""What the tests of the module front end share: small networks with random numbers, folded and compared at two sizes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
