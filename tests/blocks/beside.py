"""Blocks beside their branches one by one: what tests of training hold against each other."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from tests.support import fold_error, norms, randomize
from unbranch.blocks import Sum
from unbranch.blocks.merged import compiled

LAYOUTS = {"default": torch.contiguous_format, "last": torch.channels_last}
needs_kernels = pytest.mark.skipif(
    compiled.unavailable() is not None, reason=f"no compiled kernels: {compiled.unavailable()}"
)


def branched(block: nn.Module) -> nn.Module:
    twin = copy.deepcopy(block)
    for module in twin.modules():
        if isinstance(module, Sum):
            module.merging = "branches"
    return twin


def drawn(make: Callable[..., nn.Module], stride: int, generator: torch.Generator) -> nn.Module:
    """Random parameters and statistics, in float64, and another eps in each norm."""
    block = randomize(make(stride).double(), generator)
    for number, norm in enumerate(norms(block), 1):
        norm.eps = 0.03 * number
    return block


def sum_of(block: nn.Module) -> Sum:
    return next(module for module in block.modules() if isinstance(module, Sum))


def results(block: nn.Module, x: Tensor, steps: int = 2) -> dict[str, Tensor]:
    """Output, every gradient and every buffer after some steps, in float64."""
    found: dict[str, Tensor] = {}
    for _ in range(steps):
        block.zero_grad()
        given = x.clone().requires_grad_()
        y = block(given)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).sin().view(y.shape).to(y))
        assert given.grad is not None
        found = {"output": y, "input": given.grad}
    found |= {f"d {name}": p.grad for name, p in block.named_parameters() if p.grad is not None}
    found |= dict(block.named_buffers())
    return {name: value.detach().double() for name, value in found.items()}


def beside_zero(channels: int, size: Sequence[int], layout: str, generator: torch.Generator) -> Tensor:
    """Three pictures whose mean is not 0, in float64."""
    x = 2 * torch.randn(3, channels, *size, dtype=torch.float64, generator=generator) + 1
    return x.contiguous(memory_format=LAYOUTS[layout])


def without_and_in_autocast(block: nn.Module, x: Tensor, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """All gradients of a merged block, by a backward outside of autocast, then by one in it."""
    found = []
    for inside in (False, True):
        block.zero_grad()
        given = x.clone().requires_grad_()
        assert sum_of(block).training_plan(given).merged
        y = block(given)
        with torch.autocast(x.device.type, dtype=dtype, enabled=inside):
            y.square().sum().backward()
            assert torch.is_autocast_enabled(x.device.type) == inside
        assert given.grad is not None
        grads = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
        found.append({"input": given.grad, **grads})
    return found


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest error, NaN where there is one: Python's own ``max`` would pass over it."""
    assert found.keys() == expected.keys()
    return torch.tensor([fold_error(found[name], value) for name, value in expected.items()]).max().item()


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    return {name: fold_error(found[name], value) for name, value in expected.items()}


def apart_by(block: nn.Module, x: Tensor) -> float:
    """The largest error of anything that the block makes of x, against its branches."""
    return worst(results(copy.deepcopy(block), x), results(branched(block), x))


def alike(block: nn.Module, run: Callable[[nn.Module], Sequence[Tensor]], most: float = 1e-9) -> None:
    """What ``run`` makes of the block and of its branches by themselves is the same."""
    for ours, theirs in zip(run(block), run(branched(block)), strict=True):
        assert fold_error(ours, theirs) <= most


def as_near(exact: nn.Module, x: Tensor, room: int) -> None:
    """In float32, nothing is further from float64 than by branches, but for so many units in the last place of the worst."""
    expected = results(branched(exact), x, 1)
    ours = errors(results(copy.deepcopy(exact).float(), x.float(), 1), expected)
    theirs = errors(results(branched(exact).float(), x.float(), 1), expected)
    ulp = torch.finfo(torch.float32).eps
    assert max(ours.values()) <= max(theirs.values()) + room * ulp
    for name, error in ours.items():
        assert error <= theirs[name] + 64 * ulp, name


def seconds(model: nn.Module, x: Tensor) -> list[Tensor]:
    """First and second derivatives, of the input and of all parameters."""
    given = [x.clone().requires_grad_(), *(p for p in model.parameters() if p.requires_grad)]
    firsts = torch.autograd.grad((model(given[0]) + 1).pow(3).sum(), given, create_graph=True)
    return [*firsts, *torch.autograd.grad(sum(first.square().sum() for first in firsts), given)]


def tangent(model: nn.Module, x: Tensor, along: Tensor) -> list[Tensor]:
    """How the input's gradient changes along with that of the output, in forward mode."""
    inside = x.clone().requires_grad_()
    y = model(inside)
    with forward_ad.dual_level():
        (made,) = torch.autograd.grad(y, inside, forward_ad.make_dual(torch.ones_like(y), along))
        found = forward_ad.unpack_dual(made).tangent
    assert found is not None
    return [found]


def checkpointed(model: nn.Module, x: Tensor, reentrant: bool) -> list[Tensor]:
    """The buffers, where forward runs a second time, up to the last tensor that it keeps."""
    model = copy.deepcopy(model)
    checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant).sum().backward()
    return [buffer.double() for buffer in model.buffers()]
