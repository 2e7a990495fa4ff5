"""Sums over all windows of a batch, and convolutions of them: rows of a matrix, columns of patches, or single channels.

Patches come with their mean off, so that small variances beside large means keep their digits.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unbranch.blocks.merged.fold import gram

FEW, PART = 32, 256


class Windows(Protocol):
    """What the merged convolution asks of a batch's patches p, M of them, each G groups of D values from which O outputs are made.

    Shapes: mean, constant (G, D), covariance and quadratic (G, D, D), weight (G, O, D), offset (G, O). Made for the input alone, or for
    the input and the mean that was found of it before.
    """

    @property
    def count(self) -> int:
        """M."""
        ...

    @property
    def mean(self) -> Tensor:
        """m, the mean of p over M."""
        ...

    def covariance(self) -> Tensor:
        """Of p, over M."""
        ...

    def convolve(self, weight: Tensor, offset: Tensor, out: Tensor) -> None:
        """weight . (p - m) + offset, into ``out``, (M, G * O)."""
        ...

    def kernel_grad(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """sum g (p - m) and sum g, over M; g is (M, G * O)."""
        ...

    def input_grad(self, g: Tensor, weight: Tensor, constant: Tensor, quadratic: Tensor) -> Tensor:
        """weight g + constant + quadratic . (p - m), added up where windows overlap."""
        ...


class Rows:
    """Patches (M, G * D), a batch of matrix products for each sum."""

    def __init__(self, patches: Tensor, groups: int, mean: Tensor | None = None) -> None:
        self.count, self.groups = len(patches), groups
        self.mean = patches.mean(0).view(groups, -1) if mean is None else mean
        self.centred = self._by_group(patches - self.mean.flatten())

    def covariance(self) -> Tensor:
        """C^T C / M."""
        return gram(self.centred, self.centred).div_(self.count)

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
        whole = self.count // PART * PART
        ours, theirs = (t[:, :whole].unflatten(1, (-1, PART)) for t in (by_group, self.centred))
        rest = by_group[:, whole:].mT @ self.centred[:, whole:]
        return (ours.mT @ theirs).sum(1, dtype=torch.float64) + rest, total

    def input_grad(self, g: Tensor, weight: Tensor, constant: Tensor, quadratic: Tensor) -> Tensor:
        """Two products, the second added to the first."""
        held = torch.baddbmm(constant.unsqueeze(1), self.centred, quadratic)
        return self._flat(held.baddbmm_(self._by_group(g), weight))

    def _by_group(self, rows: Tensor) -> Tensor:
        return rows.view(self.count, self.groups, -1).transpose(0, 1)

    def _flat(self, by_group: Tensor) -> Tensor:
        return by_group.transpose(0, 1).reshape(self.count, -1)


class Columns:
    """Patches (N, G * D, L) of N pictures with L windows each, a batch of matrix products for each sum, their parts in float64."""

    def __init__(self, patches: Tensor, groups: int, mean: Tensor | None = None) -> None:
        self.count = len(patches) * patches.shape[2]
        self.mean = patches.mean((0, 2)).view(groups, -1) if mean is None else mean
        self.centred = (patches - self.mean.view(-1, 1)).unflatten(1, (groups, -1))

    def covariance(self) -> Tensor:
        """C C^T / M."""
        return self._summed(self.centred @ self.centred.mT).div_(self.count)

    def convolve(self, weight: Tensor, offset: Tensor, out: Tensor) -> None:
        """One product for each picture and group."""
        outputs = self._by_group(out)
        if len(weight) == 1:
            shared = weight.mT.expand(len(self.centred), -1, -1)
            torch.baddbmm(offset, self.centred[:, 0].mT, shared, out=outputs[:, 0].mT)
        else:
            outputs.copy_(weight @ self.centred).add_(offset.unsqueeze(2))

    def kernel_grad(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """One product for each."""
        return self._summed(self._by_group(g) @ self.centred.mT), g.sum(0).view(len(self.mean), -1)

    def input_grad(self, g: Tensor, weight: Tensor, constant: Tensor, quadratic: Tensor) -> Tensor:
        """Two products for each."""
        held = (quadratic @ self.centred).add_(weight.mT @ self._by_group(g)).add_(constant.unsqueeze(2))
        return held.flatten(1, 2)

    def _by_group(self, rows: Tensor) -> Tensor:
        """(N, G, O, L)."""
        return rows.view(len(self.centred), -1, len(self.mean), rows.shape[1] // len(self.mean)).permute(
            0, 2, 3, 1
        )

    def _summed(self, parts: Tensor) -> Tensor:
        return parts.sum(0, dtype=torch.float64).to(parts.dtype)


class Channels:
    """Patches of one value for each channel, (M, C): sums channel by channel, small ones in float64."""

    def __init__(self, patches: Tensor, mean: Tensor | None = None) -> None:
        self.count = len(patches)
        self.mean = patches.mean(0).double().unsqueeze(1) if mean is None else mean
        self.centred = patches - self.mean.flatten().to(patches.dtype)

    def covariance(self) -> Tensor:
        """Variances."""
        return self.centred.square().mean(0).double().view(-1, 1, 1)

    def convolve(self, weight: Tensor, offset: Tensor, out: Tensor) -> None:
        """A scale and a shift."""
        scale, bias = (t.flatten().to(out.dtype) for t in (weight, offset))
        torch.addcmul(bias, self.centred, scale, out=out)

    def kernel_grad(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Channel by channel."""
        return (g * self.centred).sum(0).view(-1, 1, 1), g.sum(0).unsqueeze(1)

    def input_grad(self, g: Tensor, weight: Tensor, constant: Tensor, quadratic: Tensor) -> Tensor:
        """Two scales and a shift."""
        scale, bias, slope = (t.flatten().to(g.dtype) for t in (weight, constant, quadratic))
        return torch.addcmul(bias, self.centred, slope).addcmul_(g, scale)


class Taps(NamedTuple):
    """A depthwise window on two axes: numbers of taps, the step, their distance, pixels before, and the outputs."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    out: tuple[int, ...]
