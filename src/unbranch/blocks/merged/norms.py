"""The batch norms of several values, added up and rectified in one compiled call each way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unbranch.blocks.merged.compiled import kernels
from unbranch.blocks.merged.function import by_torch
from unbranch.blocks.merged.terms import by_steps


@dataclass(frozen=True, eq=False)
class Added:
    """An eps for each norm, whether only what is above zero is passed on, and what is told the means and variances that were seen."""

    eps: tuple[float, ...]
    rectifies: bool
    remember: Callable[[Tensor, Tensor], None]


class AddedNorms(torch.autograd.Function):
    """y = t + sum_i norm_i(u_i), or max(0, y), by the batch's own statistics, of values in channels-last; y is in t's own memory.

    Each u is kept for backward, as its norm would keep it: du = a (g - B / M - (u - m) r^2 A / M), with a = gamma r, B = sum g and
    A = sum g (u - m). ``Added.remember`` is given the mean and the variance (over M) of each u, (norms, C), in float64.
    """

    @staticmethod
    def forward(ctx: Any, how: Added, total: Tensor | None, *given: Tensor | None) -> Tensor:
        """Statistics, then the sum. ``given`` are the values, then gamma and beta of each."""
        count = len(how.eps)
        values, parameters = given[:count], given[count:]
        assert values[0] is not None
        y = torch.empty_like(values[0]) if total is None else total
        options = (total is not None, how.rectifies)
        mean, inverse, variance = kernels(y.dtype).norms_forward(values, y, *options, parameters, how.eps)
        how.remember(mean, variance)
        if total is not None:
            ctx.mark_dirty(total)
        # No gradient depends on beta.
        ctx.save_for_backward(y if how.rectifies else None, mean, inverse, *values, *parameters[::2])
        ctx.eps = how.eps
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By one call; norm by norm where more is asked of the gradients than their values."""
        g, count = grads[0], len(ctx.eps)
        y, mean, inverse, *kept = ctx.saved_tensors
        values, gammas = kept[:count], kept[count:]
        needed = ctx.needs_input_grad[2:]
        if by_steps(g):
            g = g if y is None else g.masked_fill(y <= 0, 0)
            betas = [values[0].new_zeros(values[0].shape[1]).requires_grad_()] * count
            parameters = [p for pair in zip(gammas, betas, strict=True) for p in pair]
            found = by_torch(partial(_one_by_one, ctx.eps), (*values, *parameters), g, needed)
            return None, g if ctx.needs_input_grad[1] else None, *found
        if ctx.needs_input_grad[1] and y is not None:
            g, y = torch.ops.aten.threshold_backward(g, y, 0), None
        total = g if ctx.needs_input_grad[1] else None
        made = iter(kernels(g.dtype).norms_backward(values, g, y, mean, inverse, gammas, needed))
        return None, total, *(next(made) if need else None for need in needed)


def _one_by_one(eps: Sequence[float], *given: Tensor | None) -> Tensor:
    """The sum, by torch's own norms."""
    values, gammas, betas = given[: len(eps)], given[len(eps) :: 2], given[len(eps) + 1 :: 2]
    normed = [
        F.batch_norm(u, None, None, gamma, beta, training=True, eps=own)
        for u, gamma, beta, own in zip(values, gammas, betas, eps, strict=True)
        if u is not None
    ]
    return torch.stack(normed).sum(0)
