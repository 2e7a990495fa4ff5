"""What tests share: random weights and batch-norm statistics, and the error of a fold."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def uniform(shape: torch.Size, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Float64 draws between low and high, whatever the dtype or device that they are for."""
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def norms(module: nn.Module) -> Iterator[nn.Module]:
    """Every norm that keeps running statistics, frozen ones included, whatever its class."""
    for child in module.modules():
        if {"running_mean", "running_var"} <= {name for name, buffer in child.named_buffers(recurse=False)}:
            yield child


@torch.no_grad()
def randomize_norms(module: nn.Module, generator: torch.Generator, *inputs: Tensor) -> None:
    """Draw weight, bias, running mean and running variance (positive) of every batch norm in the module.

    A fresh norm (mean 0, variance 1, weight 1, bias 0) is nearly the identity and hides nearly every fold
    bug. With `inputs`, the module runs once in eval mode and each norm's statistics are drawn around those of
    what it is given, so that values stay O(1) through networks of any depth; a norm that the run does not
    reach keeps its first draw.
    """
    for norm in norms(module):
        own = dict(norm.named_parameters(recurse=False)) | dict(norm.named_buffers(recurse=False))
        shape = own["running_mean"].shape
        own["running_mean"].copy_(uniform(shape, -1.0, 1.0, generator))
        own["running_var"].copy_(uniform(shape, 0.5, 2.0, generator))
        if "weight" in own:
            signs = 1 - 2 * torch.randint(0, 2, shape, generator=generator)
            own["weight"].copy_(signs * uniform(shape, 0.5, 1.5, generator))
        if "bias" in own:
            own["bias"].copy_(uniform(shape, -0.5, 0.5, generator))
    if inputs:
        _settle(module, generator, *inputs)


def _settle(module: nn.Module, generator: torch.Generator, *inputs: Tensor) -> None:
    """Run the module once; each norm, before it runs, takes statistics drawn around those of its input."""

    def observe(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        values = args[0].double().transpose(0, 1).flatten(1).cpu()
        own = dict(norm.named_buffers(recurse=False))
        shape = own["running_mean"].shape
        # A channel seen at one position only has no variance of its own: the whole input's stands in, or 1.
        variance = values.var(1, correction=0) + 0.1 * values.var(correction=0)
        variance = torch.where(variance > 0, variance, 1.0)
        offset = uniform(shape, -0.5, 0.5, generator) * variance.sqrt()
        own["running_mean"].copy_(values.mean(1) + offset)
        own["running_var"].copy_(variance * uniform(shape, 0.5, 2.0, generator))

    modes = {child: child.training for child in module.modules()}
    handles = [norm.register_forward_pre_hook(observe) for norm in set(norms(module))]
    try:
        module.eval()(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for child, training in modes.items():
            child.training = training


@torch.no_grad()
def randomize(module: nn.Module, generator: torch.Generator, *inputs: Tensor) -> nn.Module:
    """Draw every parameter, then every norm (`randomize_norms`), so that outputs are O(1).

    Weights of two and more axes get variance 1 / fan-in, vectors are uniform in ±(0.5 … 1.5).
    Returns the module.
    """
    for parameter in module.parameters():
        if parameter.dim() > 1:
            fan_in = math.prod(parameter.shape[1:])
            spread = math.sqrt(3 / max(fan_in, 1))
            parameter.copy_(uniform(parameter.shape, -spread, spread, generator))
        else:
            signs = 1 - 2 * torch.randint(0, 2, parameter.shape, generator=generator)
            parameter.copy_(signs * uniform(parameter.shape, 0.5, 1.5, generator))
    randomize_norms(module, generator, *inputs)
    return module


def fold_error(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max(1, max|b|) in float64: the error of output `a` against the expected `b`.

    NaN where either holds one, so that no tolerance passes it; an empty tensor is without error.
    """
    if a.shape != b.shape:
        raise AssertionError(f"outputs of shape {tuple(a.shape)} and {tuple(b.shape)} cannot agree")
    if b.numel() == 0:
        return 0.0
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))
