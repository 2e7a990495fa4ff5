"""The fold and its way back in one compiled call each, where there are compiled kernels; else in torch. The same maths: ``fold``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unbranch.blocks.merged import compiled, fold
from unbranch.blocks.merged.fold import Fold, Folded, Gradients, Kept, Moments


def quick_fold(how: Fold, mean: Tensor, covariance: Tensor, parameters: Sequence[Tensor | None]) -> Folded:
    """See ``fold.fold``."""
    if not _compiled(mean):
        return fold.fold(how, mean, covariance, parameters)
    eps = [term.norm.eps for term in how.terms]
    made = torch.ops.unbranch.fold(mean, covariance, parameters, *how.places, how.bare, how.outputs, eps)
    return Folded(*made)


def quick_unfold(
    how: Fold,
    parameters: Sequence[Tensor | None],
    kept: Kept,
    kernel_grad: Tensor,
    total: Tensor,
    needed: Sequence[bool],
    like: torch.dtype,
) -> Gradients:
    """See ``fold.unfold``."""
    if not _compiled(kernel_grad):
        return fold.unfold(how, parameters, kept, kernel_grad, total, needed, like)
    made = torch.ops.unbranch.unfold(
        kept.spread,
        kept.is_covariance,
        kept.inverse,
        kernel_grad,
        total,
        parameters,
        *how.places,
        how.bare,
        needed[1:],
        needed[0],
    )
    moments = Moments(*made[-3:]) if needed[0] else None
    wanted = iter(made)
    return Gradients([next(wanted) if need else None for need in needed[1:]], moments)


def _compiled(like: Tensor) -> bool:
    return like.device.type == "cpu" and compiled.unavailable() is None
