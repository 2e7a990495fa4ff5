"""The linear bottleneck of over-parameterized compact networks."""

from dataclasses import replace
from functools import partial
from typing import Unpack, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks.block import Block, BlockOptions, Branches, Sum
from unbranch.blocks.border import BorderedPointwise
from unbranch.blocks.spec import Axes, ConvSpec


class Bottleneck(Branches):
    """y = n * w * pad(e * x), e and n 1x1, w kxk over ``widen`` times as many channels as the larger of the two ends, each with a bias."""

    def __init__(self, spec: ConvSpec, widen: float) -> None:
        super().__init__()
        self.groups = spec.groups
        most = max(spec.in_channels, spec.out_channels)
        middle = spec.groups * max(1, round(widen * most / spec.groups))
        widening = spec.pointwise(spec.in_channels, middle).conv(bias=True)
        self.bordered = BorderedPointwise(nn.Sequential(widening), spec)
        self.conv = replace(spec, in_channels=middle, out_channels=middle).unpadded(bias=True)
        self.narrow = spec.pointwise(middle, spec.out_channels).conv(bias=True)["conv"]

    @torch.no_grad()
    def take_up(self, kernel: Tensor, shift: Tensor) -> tuple[nn.Parameter, ...]:
        """``w += n⁺ kernel e⁺`` with pseudo-inverses, n n⁺ = 1 and e⁺ e = 1: there are as many channels between as at either end."""
        wide = self.get_parameter("bordered.pointwise.conv.weight")
        narrow = self.get_parameter("narrow.weight")
        e = wide.reshape(self.groups, -1, wide.shape[1])
        n = narrow.reshape(self.groups, -1, narrow.shape[1])
        if e.shape[1] < max(e.shape[2], n.shape[1]):
            return ()
        back, ahead = torch.linalg.pinv(e), torch.linalg.pinv(n)
        by_group = kernel.reshape(self.groups, -1, *kernel.shape[1:])
        held = torch.einsum("gmo,goi...,gin->gmn...", ahead, by_group, back)
        constant = self.get_parameter("bordered.pointwise.conv.bias").reshape(self.groups, -1)
        moved = torch.einsum("goi,gin,gn->go", by_group.flatten(3).sum(3), back, constant).flatten()
        weight, bias = self.get_parameter("conv.weight"), self.get_parameter("narrow.bias")
        weight.add_(held.reshape(weight.shape))
        bias.add_(shift - moved)
        return (weight, bias)

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c_in *size"]) -> Float[Tensor, "n c_out *out"]:
        """Widen, convolve, narrow."""
        return self.narrow(self.conv(self.bordered(x)))


def linear_bottleneck(spec: ConvSpec, widen: float) -> Sum:
    """1x1 -> kxk -> 1x1 with the border between them filled, and the input where channels stay and the stride is 1."""
    branches: dict[str, nn.Module] = {"bottleneck": Bottleneck(spec, widen)}
    if spec.carries_input:
        branches["shortcut"] = spec.carried()
    return Sum(branches)


class LinearBottleneck(Block):
    """y = act(w_1' * w_k * pad(w_1 * x) + x)  (Guo et al., ExpandNets, NeurIPS 2020, arXiv:1811.10495; with the input beside it:
    Bhardwaj et al., SESR, MLSys 2022, arXiv:2103.09404).

    ``widen``: channels between the 1x1 convolutions / the larger of channels in and out.
    Shapes: (N, in_channels, *size) -> (N, out_channels, *ceil(size / stride)).

    >>> LinearBottleneck(4, 8)(torch.ones(1, 4, 7, 5)).shape
    torch.Size([1, 8, 7, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Axes = 3,
        stride: Axes = 1,
        *,
        widen: float = 4.0,
        **options: Unpack[BlockOptions],
    ) -> None:
        recipe = partial(linear_bottleneck, widen=widen)
        super().__init__(in_channels, out_channels, kernel_size, stride, recipe, **options)
