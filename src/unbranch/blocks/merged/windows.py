"""Sums over all windows of a batch, and convolutions of them: rows of a matrix, single channels, or depthwise windows compiled.

Patches come with a constant ``shift`` off, on which no derivative depends: so small variances beside large means keep their digits.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

SAMPLES = 256
FEW, PART = 32, 256


class Windows(Protocol):
    """What the merged convolution asks of a batch's patches p, M of them, each G groups of D values from which O outputs are made.

    Shapes: mean, constant (G, D), covariance and quadratic (G, D, D), weight (G, O, D), offset (G, O).
    """

    @property
    def count(self) -> int:
        """M."""
        ...

    @property
    def shift(self) -> Tensor:
        """What was taken off, (G, D)."""
        ...

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance, over M, of p - shift."""
        ...

    def convolve(self, weight: Tensor, offset: Tensor, out: Tensor) -> None:
        """weight . (p - shift) + offset, into ``out``, (M, G * O)."""
        ...

    def kernel_grad(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """sum g (p - shift) and sum g, over M; g is (M, G * O)."""
        ...

    def input_grad(self, g: Tensor, weight: Tensor, constant: Tensor, quadratic: Tensor) -> Tensor:
        """weight g + constant + quadratic . (p - shift), added up where windows overlap."""
        ...


def sampled_mean(rows: Tensor) -> Tensor:
    """A cheap guess at the mean of the rows, (M, C) -> (C)."""
    return rows[:: max(1, len(rows) // SAMPLES)].mean(0)


class Rows:
    """Patches (M, G * D), a batch of matrix products for each sum."""

    def __init__(self, patches: Tensor, groups: int, shift: Tensor | None = None) -> None:
        self.count, self.groups = len(patches), groups
        flat = sampled_mean(patches) if shift is None else shift.flatten()
        self.shift = flat.view(groups, -1)
        self.centred = self._by_group(patches - flat)

    def moments(self) -> tuple[Tensor, Tensor]:
        """C^T C / M less the mean's square."""
        mean = self.centred.mean(1)
        square = mean.unsqueeze(2) * mean.unsqueeze(1)
        return mean, square.baddbmm_(self.centred.mT, self.centred, beta=-1, alpha=1 / self.count)

    def convolve(self, weight: Tensor, offset: Tensor, out: Tensor) -> None:
        """One product."""
        if self.groups == 1:
            torch.addmm(offset, self.centred[0], weight[0].T, out=out)
        else:
            self._by_group(out).copy_(torch.baddbmm(offset.unsqueeze(1), self.centred, weight.mT))

    def kernel_grad(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """One product; of few values, part by part and the parts in float64, or long sums would lose what the branches keep."""
        by_group, total = self._by_group(g), g.sum(0).view(self.groups, -1)
        if self.centred.shape[2] > FEW:
            return by_group.mT @ self.centred, total
        parts = zip(by_group.split(PART, 1), self.centred.split(PART, 1), strict=True)
        return torch.stack([a.mT @ b for a, b in parts]).sum(0, dtype=torch.float64), total

    def input_grad(self, g: Tensor, weight: Tensor, constant: Tensor, quadratic: Tensor) -> Tensor:
        """Two products, the second added to the first."""
        held = torch.baddbmm(constant.unsqueeze(1), self.centred, quadratic)
        return self._flat(held.baddbmm_(self._by_group(g), weight))

    def _by_group(self, rows: Tensor) -> Tensor:
        return rows.view(self.count, self.groups, -1).transpose(0, 1)

    def _flat(self, by_group: Tensor) -> Tensor:
        return by_group.transpose(0, 1).reshape(self.count, -1)


class Channels:
    """Patches of one value for each channel, (M, C): sums channel by channel, small ones in float64."""

    def __init__(self, patches: Tensor, shift: Tensor | None = None) -> None:
        self.count, self.patches = len(patches), patches
        self.shift = sampled_mean(patches).unsqueeze(1) if shift is None else shift
        self.centred = patches - self.shift.flatten()

    def moments(self) -> tuple[Tensor, Tensor]:
        """Variances."""
        variance, mean = torch.var_mean(self.centred, 0, correction=0)
        return mean.double().unsqueeze(1), variance.double().view(-1, 1, 1)

    def convolve(self, weight: Tensor, offset: Tensor, out: Tensor) -> None:
        """A scale and a shift."""
        torch.addcmul(offset.flatten(), self.centred, weight.flatten(), out=out)

    def kernel_grad(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Channel by channel."""
        return (g * self.centred).sum(0).view(-1, 1, 1), g.sum(0).unsqueeze(1)

    def input_grad(self, g: Tensor, weight: Tensor, constant: Tensor, quadratic: Tensor) -> Tensor:
        """Two scales and a shift."""
        held = torch.addcmul(constant.flatten(), self.centred, quadratic.flatten())
        return held.addcmul_(g, weight.flatten())


@dataclass(frozen=True)
class Taps:
    """A depthwise window on two axes: numbers of taps, their distance, pixels before, the step, and the outputs."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    out: tuple[int, ...]

    def lists(self) -> tuple[list[int], ...]:
        """As the compiled ops take them."""
        return tuple(map(list, (self.kernel, self.stride, self.dilation, self.before, self.out)))


class Depthwise:
    """Windows of a picture (N, H, W, C), channels apart, by the compiled kernels; sums in float64, (C, D)."""

    def __init__(self, pictures: Tensor, taps: Taps, shift: Tensor | None = None) -> None:
        self.pictures, self.taps = pictures, taps
        self.count = len(pictures) * taps.out[0] * taps.out[1]
        self.depth = taps.kernel[0] * taps.kernel[1]
        one = sampled_mean(pictures.flatten(0, 2)) if shift is None else shift[:, 0].to(pictures.dtype)
        self.shift = one.unsqueeze(1).expand(-1, self.depth)
        self._given = (pictures, one.contiguous())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Means of taps and of products of taps."""
        sums = torch.ops.unbranch.moments(*self._given, *self.taps.lists()).T.contiguous()
        mean, second = sums[:, : self.depth], sums[:, self.depth :].unflatten(1, (self.depth, self.depth))
        return mean, second - mean.unsqueeze(2) * mean.unsqueeze(1)

    def convolve(self, weight: Tensor, offset: Tensor, out: Tensor) -> None:
        """One pass."""
        kernel = weight.squeeze(1).T.contiguous()
        torch.ops.unbranch.convolve(*self._given, kernel, offset.flatten(), out, *self.taps.lists())

    def kernel_grad(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """One pass."""
        sums = torch.ops.unbranch.kernel_grad(*self._given, g.contiguous(), *self.taps.lists()).T
        return sums[:, :-1].unsqueeze(1), sums[:, -1:]

    def input_grad(self, g: Tensor, weight: Tensor, constant: Tensor, quadratic: Tensor) -> Tensor:
        """One pass."""
        by_tap = (weight.squeeze(1), constant, quadratic.flatten(1))
        kernels = [part.T.contiguous() for part in by_tap]
        return torch.ops.unbranch.input_grad(*self._given, g.contiguous(), *kernels, *self.taps.lists())
