"""The merged convolution: its kernel follows from the batch's own moments, and its gradients pass through them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from unbranch.blocks.merged.precision import exact_moments
from unbranch.blocks.merged.terms import by_steps


@dataclass(frozen=True, eq=False)
class Remembered:
    """Of a batch's patches, for the way back: their mean m (G, D); S w or S, from which it follows; and r."""

    mean: Tensor
    spread: Tensor
    inverse: Tensor

    @property
    def is_covariance(self) -> bool:
        """Whether ``spread`` is S (G, D, D); else it is S w (G, terms, O, D)."""
        return self.spread.ndim == 3


@runtime_checkable
class Road(Protocol):
    """How a merged convolution is computed of its windows, where x is as the road reads it and y and g are rows (M, C_out)."""

    def forward(
        self, x: Tensor, y: Tensor, parameters: Sequence[Tensor | None]
    ) -> tuple[Remembered, Tensor, Tensor]:
        """w . (p - m) + beta into y; and what the norms saw, the mean and the variance (terms, C_out)."""
        ...

    def backward(
        self,
        x: Tensor,
        g: Tensor,
        kept: Remembered,
        parameters: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients that are needed, of x and then of each parameter."""
        ...

    def branched(self, x: Tensor, parameters: Sequence[Tensor | None]) -> Tensor:
        """What y is made of, branch by branch."""
        ...


@dataclass(frozen=True, eq=False)
class Call:
    """By which road, the shape and layout of the output, and what is told the means and variances that the norms saw.

    A checkpoint that computes forward again stops it where the last tensor is kept: what norms remember is done before.
    """

    road: Road
    shape: tuple[int, ...]
    layout: torch.memory_format
    remember: Callable[[Tensor, Tensor], None]


class Merged(torch.autograd.Function):
    """y = w . (p - m) + beta with w and m from the batch (``fold``); of the batch only the input is kept.

    dp = w^T g + dm / M + 2 dS (p - m) / M. ``Call.remember`` is given the mean and the variance (over M) of what each norm would have
    seen, (terms, C_out).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call, *parameters: Tensor | None) -> Tensor:
        """Moments, fold, convolution."""
        y = torch.empty(call.shape, dtype=x.dtype, device=x.device, memory_format=call.layout)
        pixels = y.movedim(1, -1)
        direct = pixels.is_contiguous()
        rows = pixels if direct else torch.empty(pixels.shape, dtype=x.dtype, device=x.device)
        with exact_moments(x.device):
            kept, mean, variance = call.road.forward(x, rows.flatten(0, -2), parameters)
        if not direct:
            pixels.copy_(rows)
        call.remember(mean, variance)
        ctx.save_for_backward(x, kept.mean, kept.spread, kept.inverse, *parameters)
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Through one kernel; branch by branch where gradients are to be differentiated themselves, or come many at a time."""
        x, mean, spread, inverse, *parameters = ctx.saved_tensors
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:])
        if by_steps(grads[0]):
            dx, *found = by_torch(partial(_branched, ctx.call), (x, *parameters), grads[0], needed)
            return dx, None, *found
        g = grads[0].movedim(1, -1).flatten(0, -2)
        with exact_moments(x.device):
            kept = Remembered(mean, spread, inverse)
            dx, found = ctx.call.road.backward(x, g, kept, parameters, needed)
        return dx, None, *found


def _branched(call: Call, x: Tensor, *parameters: Tensor | None) -> Tensor:
    """(N, C_out, *out)."""
    count, _, *out = call.shape
    return call.road.branched(x, parameters).unflatten(0, (count, *out)).movedim(-1, 1)


def by_torch(
    run: Callable[..., Tensor], inputs: Sequence[Tensor | None], g: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients that are needed of ``run(*inputs)``, by torch's own steps: to be differentiated again, or many at a time."""
    again = torch.is_grad_enabled()
    with torch.enable_grad(), exact_moments(g.device):
        # Of aliases: one input may be what another was made of, and that way is not this call's.
        own = [None if one is None else one.view_as(one) for one in inputs]
        wanted = [one for one, need in zip(own, needed, strict=True) if one is not None and need]
        found = iter(torch.autograd.grad(run(*own), wanted, g, create_graph=again))
    return tuple(next(found) if need else None for need in needed)
