"""The batch norms of several values, added up and rectified in one compiled call each way."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unbranch.blocks.merged.compiled import kernels
from unbranch.blocks.merged.function import by_torch
from unbranch.blocks.merged.terms import is_batch


class AddedNorms(torch.autograd.Function):
    """y = t + sum_i norm_i(u_i), or max(0, y), by the batch's own statistics and in channels-last.

    Each u is kept for backward, as its norm would keep it: du = a (g - B / M - (u - m) r^2 A / M), with a = gamma r, B = sum g and
    A = sum g (u - m). Returns y, in t's own memory where there is a t, and the mean and the variance (over M) of each u, (norms, C), in
    float64.
    """

    @staticmethod
    def forward(
        ctx: Any, eps: Sequence[float], rectifies: bool, total: Tensor | None, *given: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Statistics, then the sum. ``given`` are the values, then gamma and beta of each."""
        values, parameters = _channels_last(given[: len(eps)]), given[len(eps) :]
        y = torch.empty_like(values[0]) if total is None else total
        how = (total is not None, rectifies)
        mean, inverse, variance = kernels(y.dtype).norms_forward(values, y, *how, parameters, eps)
        if total is not None:
            ctx.mark_dirty(total)
        ctx.mark_non_differentiable(mean, variance)
        ctx.save_for_backward(y if rectifies else None, mean, inverse, *given)
        ctx.eps = eps
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By one call; norm by norm where gradients are to be differentiated themselves, or come many at a time."""
        g, count = grads[0], len(ctx.eps)
        y, mean, inverse, *given = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled() or is_batch(g):
            g = g if y is None else g.masked_fill(y <= 0, 0)
            found = by_torch(partial(_one_by_one, ctx.eps), given, g, needed)
            return None, None, g if ctx.needs_input_grad[2] else None, *found
        if ctx.needs_input_grad[2] and y is not None:
            g, y = torch.ops.aten.threshold_backward(g, y, 0), None
        total = g if ctx.needs_input_grad[2] else None
        values = _channels_last(given[:count])
        made = iter(kernels(g.dtype).norms_backward(values, g, y, mean, inverse, given[count:], needed))
        return None, None, total, *(next(made) if need else None for need in needed)


def _one_by_one(eps: Sequence[float], *given: Tensor | None) -> Tensor:
    """The sum, by torch's own norms."""
    values, gammas, betas = given[: len(eps)], given[len(eps) :: 2], given[len(eps) + 1 :: 2]
    normed = [
        F.batch_norm(u, None, None, gamma, beta, training=True, eps=own)
        for u, gamma, beta, own in zip(values, gammas, betas, eps, strict=True)
        if u is not None
    ]
    return torch.stack(normed).sum(0)


def _channels_last(values: Sequence[Tensor | None]) -> list[Tensor]:
    """The values; a copy of those that lie otherwise."""
    return [v.movedim(1, -1).contiguous().movedim(-1, 1) for v in values if v is not None]
