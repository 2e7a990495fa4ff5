"""The merged convolution: its kernel follows from the batch's own moments, and its gradients pass through them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unbranch.blocks.merged.fold import Branch, Fold, fold, unfold
from unbranch.blocks.merged.precision import full_precision
from unbranch.blocks.merged.windows import Windows

Reader = Callable[[Tensor, Tensor | None], Windows]
"""Windows of a tensor, for a shift that is known already or for one to be chosen."""


@dataclass(frozen=True, eq=False)
class Call:
    """How to read the input, what to fold, and the shape and layout of the output."""

    read: Reader
    how: Fold
    shape: tuple[int, ...]
    layout: torch.memory_format


class Merged(torch.autograd.Function):
    """y = w . (p - m) + beta with w and m from the batch (``fold``); of the batch only the input is kept.

    dp = w^T g + dm / M + 2 dS (p - m) / M. Returns y and, for each norm, the mean and the variance (over M) of what it would have seen.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        """Moments, fold, convolution."""
        y = torch.empty(call.shape, dtype=x.dtype, device=x.device, memory_format=call.layout)
        with full_precision(x.device):
            windows = call.read(x, None)
            mean, covariance = windows.moments()
            made = fold(call.how, mean, covariance, windows.shift, parameters)
            weight = made.weight.to(x.dtype)
            pixels = y.movedim(1, -1)
            direct = pixels.is_contiguous()
            rows = (pixels if direct else torch.empty(pixels.shape, dtype=x.dtype, device=x.device)).flatten(
                0, -2
            )
            windows.convolve(weight, made.offset.to(x.dtype), rows)
            if not direct:
                pixels.copy_(rows.view(pixels.shape))
        ctx.mark_non_differentiable(*made.means, *made.variances)
        kept = [t for b in made.branches for t in (b.rows, b.seen, b.inverse, b.scale)]
        ctx.save_for_backward(x, windows.shift, mean, weight, *kept)
        ctx.call = call
        return y, *made.means, *made.variances

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Raises RuntimeError where the gradients themselves are to be differentiated."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "merged branches have no second derivative: for create_graph=True make the blocks with training='branches'"
            )
        x, shift, mean, weight, *kept = ctx.saved_tensors
        branches = [Branch(*kept[i : i + 4]) for i in range(0, len(kept), 4)]
        g = grads[0].movedim(1, -1).flatten(0, -2)
        with full_precision(x.device):
            windows = ctx.call.read(x, shift)
            product, total = (part.to(mean.dtype) for part in windows.kernel_grad(g))
            product = product - total.unsqueeze(2) * mean.unsqueeze(1)
            through = ctx.needs_input_grad[0]
            found = unfold(ctx.call.how, branches, product, total, through, ctx.needs_input_grad[2:])
            dx = None
            if found.covariance is not None:
                quadratic = found.covariance * (2 / windows.count)
                dmean = -(total.unsqueeze(1) @ weight.to(mean.dtype)).squeeze(1)
                constant = dmean / windows.count - (quadratic @ mean.unsqueeze(2)).squeeze(2)
                dx = windows.input_grad(g, weight, constant.to(x.dtype), quadratic.to(x.dtype))
        like = zip(found.parameters, ctx.call.how.parameters(), strict=True)
        return dx, None, *(None if d is None or p is None else d.to(p.dtype) for d, p in like)
