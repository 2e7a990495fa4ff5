"""The merged convolution: its kernel follows from the batch's own moments, and its gradients pass through them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unbranch.blocks.merged.fold import Fold, Kept
from unbranch.blocks.merged.precision import full_precision
from unbranch.blocks.merged.quick import quick_fold, quick_unfold
from unbranch.blocks.merged.windows import Windows

Reader = Callable[[Tensor, Tensor | None], Windows]
"""Windows of a tensor, for a mean that is known already or to be found."""


@dataclass(frozen=True, eq=False)
class Call:
    """How to read the input, what to fold, and the shape and layout of the output."""

    read: Reader
    how: Fold
    shape: tuple[int, ...]
    layout: torch.memory_format


class Merged(torch.autograd.Function):
    """y = w . (p - m) + beta with w and m from the batch (``fold``); of the batch only the input is kept.

    dp = w^T g + dm / M + 2 dS (p - m) / M. Returns y and the mean and the variance (over M) of what each norm would
    have seen, (terms, C_out).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        """Moments, fold, convolution."""
        y = torch.empty(call.shape, dtype=x.dtype, device=x.device, memory_format=call.layout)
        with full_precision(x.device):
            windows = call.read(x, None)
            covariance = windows.covariance()
            made = quick_fold(call.how, windows.mean, covariance, parameters)
            pixels = y.movedim(1, -1)
            direct = pixels.is_contiguous()
            rows = (pixels if direct else torch.empty(pixels.shape, dtype=x.dtype, device=x.device)).flatten(
                0, -2
            )
            windows.convolve(made.weight, made.offset, rows)
            if not direct:
                pixels.copy_(rows.view(pixels.shape))
        ctx.mark_non_differentiable(made.mean, made.variance)
        # S w, or S, from which it follows, where it would be more to keep than a convolution's output.
        ctx.keeps_covariance = covariance.numel() < made.seen.numel() > y.numel()
        kept = covariance if ctx.keeps_covariance else made.seen
        ctx.save_for_backward(x, windows.mean, kept, made.inverse, *parameters)
        ctx.call = call
        return y, made.mean, made.variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Raises RuntimeError where the gradients themselves are to be differentiated."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "merged branches have no second derivative: for create_graph=True make the blocks with training='branches'"
            )
        x, mean, kept, inverse, *parameters = ctx.saved_tensors
        how: Fold = ctx.call.how
        g = grads[0].movedim(1, -1).flatten(0, -2)
        with full_precision(x.device):
            windows = ctx.call.read(x, mean)
            product, total = (part.to(mean.dtype) for part in windows.kernel_grad(g))
            needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:])
            spread = Kept(kept, ctx.keeps_covariance, inverse)
            found = quick_unfold(how, parameters, spread, product, total, needed, x.dtype)
            dx = None
            if (moments := found.moments) is not None:
                quadratic = moments.covariance.mul_(2 / windows.count)
                dx = windows.input_grad(g, moments.weight, moments.mean.div_(windows.count), quadratic)
        return dx, None, *found.parameters
