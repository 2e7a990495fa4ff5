"""Implicit knowledge: values per channel that are learnt for themselves, added to or multiplied with a map."""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks.block import Block, Branches
from unbranch.blocks.spec import ConvSpec

SPREAD = 0.02


class Implicit(nn.Module):
    """One value per channel, learnt for itself; drawn from N(``mean``, 0.02²)."""

    mean: float

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.empty(1, channels, 1, 1).normal_(self.mean, SPREAD))


class ImplicitA(Implicit):
    """y = x + a, one a per channel, drawn from N(0, 0.02²)  (Wang et al., YOLOR, arXiv:2105.04206).

    >>> ImplicitA(4)(torch.ones(2, 4, 5, 7)).shape
    torch.Size([2, 4, 5, 7])
    """

    mean = 0.0

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Add."""
        return x + self.implicit


class ImplicitM(Implicit):
    """y = m · x, one m per channel, drawn from N(1, 0.02²)  (Wang et al., YOLOR, arXiv:2105.04206).

    >>> ImplicitM(4)(torch.ones(2, 4, 5, 7)).shape
    torch.Size([2, 4, 5, 7])
    """

    mean = 1.0

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Multiply."""
        return x * self.implicit


class Implied(Branches):
    """y = m · (w * (x + a) + b): one branch, which is one convolution since the 1x1 reads no border."""

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.add = ImplicitA(spec.in_channels)
        self.conv = spec.conv(bias=True)["conv"]
        self.multiply = ImplicitM(spec.out_channels)

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h w"]:
        """Add, convolve, multiply."""
        return self.multiply(self.conv(self.add(x)))


class ImplicitConv(Block):
    """y = m · (w * (x + a) + b), w a 1x1: a level of YOLOv7's head  (Wang et al., CVPR 2023, arXiv:2207.02696).

    Shapes: (N, in_channels, H, W) -> (N, out_channels, H, W). No norm, no activation.

    >>> ImplicitConv(4, 6)(torch.ones(2, 4, 5, 7)).shape
    torch.Size([2, 6, 5, 7])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, 1, Implied, activation=None)
