"""Sums over all windows of a batch, and convolutions of them: rows of a matrix, single channels, or depthwise windows compiled.

Patches come with their mean off, so that small variances beside large means keep their digits.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unbranch.blocks.merged.fold import gram

SAMPLES = 256
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
    """Windows of a picture (N, H, W, C), channels apart, by the compiled kernels; sums in float64, (C, D).

    The kernels take one number off each channel, which is near the means of all taps; what is left of these is ``_rest``.
    """

    def __init__(self, pictures: Tensor, taps: Taps, mean: Tensor | None = None) -> None:
        self.taps = taps
        self.count = len(pictures) * taps.out[0] * taps.out[1]
        flat = pictures.flatten(0, 2)
        shift = flat[:: max(1, len(flat) // SAMPLES)].mean(0) if mean is None else mean.mean(1).to(flat.dtype)
        self._given = (pictures, shift)
        if mean is None:
            depth = taps.kernel[0] * taps.kernel[1]
            sums = torch.ops.unbranch.moments(*self._given, *taps.lists()).T.contiguous()
            self._rest, self._second = sums[:, :depth], sums[:, depth:].unflatten(1, (depth, depth))
            self.mean = self._rest + shift.unsqueeze(1)
        else:
            self._rest, self.mean = mean - shift.unsqueeze(1), mean

    def covariance(self) -> Tensor:
        """Means of products of taps, less the products of their means."""
        return self._second - self._rest.unsqueeze(2) * self._rest.unsqueeze(1)

    def convolve(self, weight: Tensor, offset: Tensor, out: Tensor) -> None:
        """One pass."""
        kernel = weight.squeeze(1)
        bias = offset.flatten() - (kernel * self._rest).sum(1)
        by_tap = (t.to(out.dtype).contiguous() for t in (kernel.T, bias))
        torch.ops.unbranch.convolve(*self._given, *by_tap, out, *self.taps.lists())

    def kernel_grad(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """One pass."""
        sums = torch.ops.unbranch.kernel_grad(*self._given, g.contiguous(), *self.taps.lists()).T
        total = sums[:, -1:]
        return (sums[:, :-1] - total * self._rest).unsqueeze(1), total

    def input_grad(self, g: Tensor, weight: Tensor, constant: Tensor, quadratic: Tensor) -> Tensor:
        """One pass."""
        constant = constant - (quadratic * self._rest.unsqueeze(1)).sum(2)
        by_tap = (t.T.to(g.dtype).contiguous() for t in (weight.squeeze(1), constant, quadratic.flatten(1)))
        return torch.ops.unbranch.input_grad(*self._given, g.contiguous(), *by_tap, *self.taps.lists())
