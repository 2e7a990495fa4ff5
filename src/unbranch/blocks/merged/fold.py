"""Batch norms of several kernels folded into one, by the statistics that a batch's own patches give them, and the way back.

With p the patch at an output, m its mean over the batch and S its covariance, ``w * x`` has mean ``w . m`` and variance ``w S w``, so

    sum_b norm_b(w_b * x) = w . (p - m) + sum_b beta_b,    w = sum_b a_b w_b,    a_b = gamma_b r_b,    r_b = 1 / sqrt(w_b S w_b + eps_b)

and, with B = sum g and A = sum g (p - m)^T over the batch,

    dbeta_b = B,   dgamma_b = r_b t_b,   t_b = A . w_b,   dv_b = -a_b r_b^2 t_b / 2,   dw_b = a_b A + 2 dv_b S w_b,
    dS = sum_b w_b^T dv_b w_b,   dm = -w^T B.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod

import torch
from torch import Tensor, nn

from unbranch.blocks.merged.function import Remembered
from unbranch.blocks.merged.terms import Term
from unbranch.ops.batch_norm import Running

WORTH_HALVING = 64
"""Columns from which two products of half the width are quicker than one."""


@dataclass(frozen=True, eq=False)
class Fold:
    """The terms of a sum on a window of ``size`` taps an axis, ``dilation`` pixels apart, the first ``before`` pixels before its output.

    Terms that are bare come last: norms of the input itself where the window is one pixel, whose kernel is the identity and is never
    written down. Kernels on the window are rows (G, terms, O, D), D counting a group's input channels, then the taps; what there is one
    of for each output is (G, terms, O).
    """

    terms: tuple[Term, ...]
    groups: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def bare(self) -> int:
        """How many terms are."""
        return sum(term.weight is None for term in self.terms) if all(k == 1 for k in self.size) else 0

    @property
    def outputs(self) -> int:
        """O, of one group."""
        return self.terms[0].window.outputs // self.groups

    @cached_property
    def places(self) -> tuple[list[int], list[int], int]:
        """The taps of the window that each term's own taps are, term after term; how many each has; how many the window has."""
        shapes = tuple((term.window.size, tuple(self._margins(term)[-2::-2])) for term in self.terms)
        return _places(shapes, self.size)

    @cached_property
    def eps(self) -> list[float]:
        """Of each term's norm."""
        return [term.norm.eps for term in self.terms]

    @cached_property
    def parameters(self) -> list[Tensor | None]:
        """Kernel, gamma and beta of each term in turn, None for what it has not."""
        return [p for term in self.terms for p in term.parameters]

    @cached_property
    def running(self) -> Running:
        """Statistics of the norms."""
        return Running([term.norm for term in self.terms])

    def rows(self, parameters: Sequence[Tensor | None], like: Tensor) -> Tensor:
        """The kernels on the window, of all terms that are not bare."""
        kernels = parameters[: 3 * (len(self.terms) - self.bare) : 3]
        if not kernels:
            return like.new_zeros(self.groups, 0, self.outputs, like.shape[-1])
        found, start = [], 0
        for stop in range(1, len(kernels) + 1):
            if stop == len(kernels) or not self._alike(start, stop):
                found.append(self._rows(start, kernels[start:stop], like))
                start = stop
        rows = torch.cat(found) if len(found) > 1 else found[0]
        return rows.transpose(0, 1).contiguous()

    def _alike(self, one: int, other: int) -> bool:
        """Whether two terms' kernels are of one size, in one place on the window."""
        a, b = self.terms[one], self.terms[other]
        return (a.weight is None) == (b.weight is None) and (a.window.size, a.window.before) == (
            b.window.size,
            b.window.before,
        )

    def _rows(self, first: int, kernels: Sequence[Tensor | None], like: Tensor) -> Tensor:
        """Of alike terms, the first of them given: (terms, G, O, D)."""
        written = [kernel for kernel in kernels if kernel is not None]
        if written:
            weight = torch.stack(written).to(like.dtype)
        else:
            weight = torch.eye(self.outputs, dtype=like.dtype, device=like.device)
            weight = weight.repeat(len(kernels), self.groups, 1)[(..., *(None,) * len(self.size))]
        margins = self._margins(self.terms[first])
        if any(margins):
            weight = nn.functional.pad(weight, margins)
        return weight.reshape(len(kernels), self.groups, self.outputs, -1)

    def kernel_of(self, index: int, rows: Tensor) -> Tensor:
        """The part of the window that is the term's own kernel, in the kernel's shape: ``rows`` (G, O, D) backwards.

        Strides of axes of one element, too, are the kernel's, which DistributedDataParallel compares.
        """
        term = self.terms[index]
        weight = term.weight
        assert weight is not None
        window = rows.reshape(*weight.shape[:2], *self.size)
        margins = self._margins(term)
        if any(margins):
            window = nn.functional.pad(window, [-n for n in margins])
        return window.as_strided(weight.shape, weight.stride()) if weight.is_contiguous() else window

    def by_term(self, parameters: Sequence[Tensor | None], missing: float, like: Tensor) -> Tensor:
        """A parameter (C_out) of each term, as (G, terms, O); ``missing`` where there is none."""
        own = next((p.dtype for p in parameters if p is not None), like.dtype)
        shape = (self.groups * self.outputs,)
        each = [like.new_full(shape, missing, dtype=own) if p is None else p for p in parameters]
        return torch.stack(each).to(like.dtype).view(-1, self.groups, self.outputs).transpose(0, 1)

    def _margins(self, term: Term) -> list[int]:
        """Taps of the window before and after the term's own, the last axis first."""
        own = term.window
        room = zip(self.size, own.size, self.before, own.before, self.dilation, strict=True)
        pairs = [((b - first) // d, k - size - (b - first) // d) for k, size, b, first, d in room]
        return [n for pair in reversed(pairs) for n in pair]


@cache
def _places(
    terms: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], window: tuple[int, ...]
) -> tuple[list[int], list[int], int]:
    """Of terms of so many taps an axis, so many taps of the window in front of them."""
    numbers = torch.arange(prod(window), device="cpu").view(window)
    found = []
    for size, first in terms:
        part = numbers[tuple(slice(f, f + k) for f, k in zip(first, size, strict=True))]
        found.append(part.flatten().tolist())
    return [n for part in found for n in part], [len(part) for part in found], prod(window)


@dataclass(frozen=True, eq=False)
class Folded:
    """The kernel of y = weight . (p - m) + offset; S w and r; and the means and variances that the norms saw, (terms, C_out)."""

    weight: Tensor
    offset: Tensor
    seen: Tensor
    inverse: Tensor
    mean: Tensor
    variance: Tensor


def fold(how: Fold, mean: Tensor, covariance: Tensor, parameters: Sequence[Tensor | None]) -> Folded:
    """One kernel for patches with this mean (G, D) and covariance (G, D, D); in their dtype."""
    rows = how.rows(parameters, mean)
    seen = through(rows, covariance)
    variance = (rows * seen).sum(-1)
    average = through(rows, mean.unsqueeze(2)).squeeze(3)
    if how.bare:
        shape = (-1, how.bare, -1)
        variance = torch.cat([variance, covariance.diagonal(dim1=1, dim2=2).unsqueeze(1).expand(shape)], 1)
        average = torch.cat([average, mean.unsqueeze(1).expand(shape)], 1)
    eps = mean.new_tensor(how.eps)
    inverse = torch.rsqrt(variance + eps.unsqueeze(1))
    weight = merge(how, rows, inverse * how.by_term(parameters[1::3], 1.0, mean))
    offset = how.by_term(parameters[2::3], 0.0, mean).sum(1)
    flat = (t.transpose(0, 1).flatten(1) for t in (average, variance))
    return Folded(weight, offset, seen, inverse, *flat)


def through(rows: Tensor, matrix: Tensor) -> Tensor:
    """Each term's rows times a matrix for each group, all terms in one product: (G, terms, O, D), (G, D, E) -> (G, terms, O, E)."""
    return (rows.flatten(1, 2) @ matrix).unflatten(1, rows.shape[1:3])


def gram(a: Tensor, b: Tensor) -> Tensor:
    """a^T b, (G, M, D) each, where it is symmetric: what lies below the diagonal is not multiplied out."""
    half = a.shape[2] // 2
    if half < WORTH_HALVING:
        return a.mT @ b
    upper = a[..., :half].mT @ b
    lower = a[..., half:].mT @ b[..., half:]
    return torch.cat([upper, torch.cat([upper[..., half:].mT, lower], 2)], 1)


def merge(how: Fold, rows: Tensor, scale: Tensor) -> Tensor:
    """sum_b a_b w_b, (G, O, D)."""
    weight = (rows * scale[:, : rows.shape[1]].unsqueeze(3)).sum(1)
    if how.bare:
        weight.diagonal(dim1=1, dim2=2).add_(scale[:, rows.shape[1] :].sum(1))
    return weight


@dataclass(frozen=True, eq=False)
class Moments:
    """dS (G, D, D) and dm (G, D), and w (G, O, D)."""

    covariance: Tensor
    mean: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Gradients:
    """Of the parameters, as ``Fold.parameters`` lists them; where the input's is wanted, of the moments too, and w once more."""

    parameters: list[Tensor | None]
    moments: Moments | None


def unfold(
    how: Fold,
    parameters: Sequence[Tensor | None],
    kept: Remembered,
    kernel_grad: Tensor,
    total: Tensor,
    needed: Sequence[bool],
    like: torch.dtype,
) -> Gradients:
    """The gradients, for A (G, O, D) and B (G, O), the parameters' as ``like``.

    ``needed`` says of the input, then of each parameter, whether its own is wanted.
    """
    rows, inverse = how.rows(parameters, kernel_grad), kept.inverse
    seen = through(rows, kept.spread) if kept.is_covariance else kept.spread
    scale = inverse * how.by_term(parameters[1::3], 1.0, inverse)
    drawn = (kernel_grad.unsqueeze(1) * rows).sum(-1)
    if how.bare:
        diagonal = kernel_grad.diagonal(dim1=1, dim2=2).unsqueeze(1)
        drawn = torch.cat([drawn, diagonal.expand(-1, how.bare, -1)], 1)
    dvariance = scale * inverse.square() * drawn * -0.5
    written = rows.shape[1]
    own = dvariance[:, :written].unsqueeze(3)
    drows = kernel_grad.unsqueeze(1) * scale[:, :written].unsqueeze(3)
    drows = drows.addcmul_(seen, own, value=2).transpose(0, 1).to(like).contiguous()
    # Copies: gradients that share memory would be clipped twice.
    dgamma, dbeta = (t.transpose(0, 1).to(like).flatten(1) for t in (inverse * drawn, total.unsqueeze(1)))
    found: list[Tensor | None] = []
    for i in range(len(how.terms)):
        kernel, gamma, beta = needed[1 + 3 * i : 4 + 3 * i]
        found.append(how.kernel_of(i, drows[i]) if kernel else None)
        found += [dgamma[i] if gamma else None, dbeta[0].clone() if beta else None]
    if not needed[0]:
        return Gradients(found, None)
    dcovariance = gram(rows.flatten(1, 2), (rows * own).flatten(1, 2))
    if how.bare:
        dcovariance.diagonal(dim1=1, dim2=2).add_(dvariance[:, written:].sum(1))
    weight = merge(how, rows, scale)
    return Gradients(found, Moments(dcovariance, -(total.unsqueeze(1) @ weight).squeeze(1), weight))
