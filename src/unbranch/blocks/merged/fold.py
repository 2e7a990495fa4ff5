"""Batch norms of several kernels folded into one, by the statistics that a batch's own patches give them, and the way back.

With p the patch at an output, m its mean over the batch and S its covariance, ``w * x`` has mean ``w . m`` and variance ``w S w``, so

    sum_b norm_b(w_b * x) = w . (p - m) + sum_b beta_b,    w = sum_b a_b w_b,    a_b = gamma_b r_b,    r_b = 1 / sqrt(w_b S w_b + eps_b)

and, with B = sum g and A = sum g (p - m)^T over the batch,

    dbeta_b = B,   dgamma_b = r_b t_b,   t_b = A . w_b,   dv_b = -a_b r_b^2 t_b / 2,   dw_b = a_b A + 2 dv_b S w_b,
    dS = sum_b w_b^T dv_b w_b,   dm = -w^T B.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbranch.blocks.merged.terms import Term


@dataclass(frozen=True, eq=False)
class Fold:
    """The terms of a sum on a window of ``size`` taps an axis, ``dilation`` pixels apart, the first ``before`` pixels before its output.

    Rows are (G, O, D), D counting a group's input channels, then the taps; what there is one of for each output is (G, O).
    """

    terms: tuple[Term, ...]
    groups: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def parameters(self) -> list[Tensor | None]:
        """Kernel, gamma and beta of each term in turn, None for what it has not."""
        return [p for term in self.terms for p in term.parameters()]

    def rows(self, index: int, weight: Tensor | None, like: Tensor) -> Tensor | None:
        """A term's kernel on the window; None for the input itself where the window is one pixel: rows of the identity."""
        term = self.terms[index]
        out = term.norm.num_features // self.groups
        if weight is None:
            if all(k == 1 for k in self.size):
                return None
            weight = torch.eye(out, dtype=like.dtype, device=like.device).repeat(self.groups, 1)
            weight = weight.view(*weight.shape, *(1,) * len(self.size))
        margins = self._margins(term)
        weight = weight.detach().to(like.dtype)
        if any(margins):
            weight = nn.functional.pad(weight, margins)
        return weight.reshape(self.groups, out, -1)

    def kernel_of(self, index: int, rows: Tensor) -> Tensor:
        """The part of the window that is the term's own kernel, in the kernel's shape: ``rows`` backwards."""
        term = self.terms[index]
        assert term.weight is not None
        window = rows.reshape(*term.weight.shape[:2], *self.size)
        return nn.functional.pad(window, [-n for n in self._margins(term)])

    def _margins(self, term: Term) -> list[int]:
        """Taps of the window before and after the term's own, the last axis first."""
        room = zip(self.size, term.size, self.before, term.before, self.dilation, strict=True)
        pairs = [((b - own) // d, k - size - (b - own) // d) for k, size, b, own, d in room]
        return [n for pair in reversed(pairs) for n in pair]


@dataclass(frozen=True, eq=False)
class Branch:
    """What one norm made of the statistics: its kernel's rows, S w, r and a."""

    rows: Tensor | None
    seen: Tensor
    inverse: Tensor
    scale: Tensor


@dataclass(frozen=True, eq=False)
class Folded:
    """The kernel of y = weight . p + offset, p with its shift off; and the branches, with the means and variances that they saw."""

    weight: Tensor
    offset: Tensor
    branches: tuple[Branch, ...]
    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]


def fold(
    how: Fold, mean: Tensor, covariance: Tensor, shift: Tensor, parameters: Sequence[Tensor | None]
) -> Folded:
    """One kernel for patches, ``shift`` (G, D) off, with this mean (G, D) and covariance (G, D, D); in their dtype."""
    depth = mean.shape[1]
    branches, means, variances = [], [], []
    weight = offset = None
    for i, term in enumerate(how.terms):
        kernel, gamma, beta = parameters[3 * i : 3 * i + 3]
        rows = how.rows(i, kernel, mean)
        if rows is None:
            seen, variance, average = covariance, covariance.diagonal(dim1=1, dim2=2), mean + shift
        else:
            seen = rows @ covariance
            variance = (rows * seen).sum(-1)
            average = (rows @ (mean + shift).unsqueeze(2)).squeeze(2)
        inverse = torch.rsqrt(variance + term.norm.eps)
        scale = inverse if gamma is None else inverse * gamma.view_as(inverse)
        weight = mean.new_zeros(*inverse.shape, depth) if weight is None else weight
        if rows is None:
            weight.diagonal(dim1=1, dim2=2).add_(scale)
        else:
            weight.addcmul_(rows, scale.unsqueeze(2))
        if beta is not None:
            offset = (
                beta.view_as(inverse).to(mean.dtype) if offset is None else offset + beta.view_as(inverse)
            )
        branches.append(Branch(rows, seen, inverse, scale))
        means.append(average.flatten())
        variances.append(variance.flatten())
    assert weight is not None
    away = (weight @ mean.unsqueeze(2)).squeeze(2)
    offset = -away if offset is None else offset - away
    return Folded(weight, offset, tuple(branches), tuple(means), tuple(variances))


@dataclass(frozen=True, eq=False)
class Gradients:
    """Of each parameter, as ``Fold.parameters`` lists them, and of the covariance where it was asked for."""

    parameters: list[Tensor | None]
    covariance: Tensor | None


def unfold(
    how: Fold,
    branches: Sequence[Branch],
    kernel_grad: Tensor,
    total: Tensor,
    through: bool,
    needed: Sequence[bool],
) -> Gradients:
    """The gradients, for A (G, O, D) and B (G, O); the covariance's if ``through``, parameters' where ``needed``."""
    found: list[Tensor | None] = []
    dcovariance = None
    for i, (rows, seen, inverse, scale) in enumerate((b.rows, b.seen, b.inverse, b.scale) for b in branches):
        kernel, gamma, beta = needed[3 * i : 3 * i + 3]
        drawn = kernel_grad.diagonal(dim1=1, dim2=2) if rows is None else (kernel_grad * rows).sum(-1)
        dvariance = scale * inverse.square() * drawn * -0.5
        drows = None
        if kernel:
            drows = (kernel_grad * scale.unsqueeze(2)).addcmul_(seen, dvariance.unsqueeze(2), value=2)
            drows = how.kernel_of(i, drows)
        found += [drows, (inverse * drawn).flatten() if gamma else None, total.flatten() if beta else None]
        if through:
            if dcovariance is None:
                dcovariance = seen.new_zeros(len(seen), seen.shape[-1], seen.shape[-1])
            if rows is None:
                dcovariance.diagonal(dim1=1, dim2=2).add_(dvariance)
            else:
                dcovariance.baddbmm_(rows.mT, rows * dvariance.unsqueeze(2))
    return Gradients(found, dcovariance)
