"""Bottleneck, C3 and SPPF, made of `Conv` and of whatever block stands for the 3x3."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks import Deployable
from unbranch.blocks.activation import Activation
from unbranch.models.yolo.recipes import PLAIN, BlockChoice, Conv
from unbranch.models.yolov5.description import BOTTLENECKS

BlockFactory: TypeAlias = Callable[[int, int], nn.Module]


class Bottleneck(Deployable, nn.Module):
    """y = second(first(x)) [+ x], both with `channels` in and out.

    `shape` is `"1x1-3x3"`, YOLOv5's own (the block is the 3x3), or `"3x3-3x3"` (both are blocks).

    >>> Bottleneck(8, BlockChoice("repvgg"))(torch.ones(1, 8, 5, 7)).shape
    torch.Size([1, 8, 5, 7])
    """

    def __init__(
        self,
        channels: int,
        block: BlockChoice | BlockFactory = PLAIN,
        shape: str = BOTTLENECKS[0],
        residual: bool = True,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        if shape not in BOTTLENECKS:
            raise ValueError(f"bottleneck shape {shape!r}; one of {', '.join(BOTTLENECKS)}")
        wide = shape == "3x3-3x3"
        self.first = (
            _block(block, channels, activation) if wide else Conv(channels, channels, activation=activation)
        )
        self.second = _block(block, channels, activation)
        self.residual = residual

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Both layers, then the residual."""
        y = self.second(self.first(x))
        return x + y if self.residual else y


class C3(Deployable, nn.Module):
    """y = merge(bottlenecks(main(x)) ‖ bypass(x)), ‖ along the channels; three 1x1 layers around a row of
    bottlenecks.

    `block` is what stands for the 3x3 of each bottleneck: a `BlockChoice`, or any function of (channels in,
    channels out) that returns a module keeping the size. `depth` bottlenecks work on half of `out_channels`.

    >>> C3(16, 32, depth=2, block=lambda i, o: nn.Conv2d(i, o, 3, padding=1))(torch.ones(1, 16, 8, 8)).shape
    torch.Size([1, 32, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int = 1,
        block: BlockChoice | BlockFactory = PLAIN,
        bottleneck: str = BOTTLENECKS[0],
        residual: bool = True,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        half = out_channels // 2
        self.main = Conv(in_channels, half, activation=activation)
        self.bypass = Conv(in_channels, half, activation=activation)
        self.bottlenecks = nn.Sequential(
            *(Bottleneck(half, block, bottleneck, residual, activation) for _ in range(depth))
        )
        self.merge = Conv(2 * half, out_channels, activation=activation)

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h w"]:
        """Bottlenecks and bypass, joined and merged."""
        return self.merge(torch.cat((self.bottlenecks(self.main(x)), self.bypass(x)), dim=1))


class SPPF(Deployable, nn.Module):
    """y = merge(x' ‖ p(x') ‖ p(p(x')) ‖ p(p(p(x')))), x' = reduce(x), p a 5x5 maximum: pooling over 5, 9 and
    13 pixels.

    >>> SPPF(16, 24)(torch.ones(1, 16, 3, 5)).shape
    torch.Size([1, 24, 3, 5])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 5, activation: Activation = "silu"
    ) -> None:
        super().__init__()
        half = in_channels // 2
        self.reduce = Conv(in_channels, half, activation=activation)
        self.pool = nn.MaxPool2d(kernel_size, stride=1, padding=kernel_size // 2)
        self.merge = Conv(4 * half, out_channels, activation=activation)

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h w"]:
        """Reduce, pool three times, join, merge."""
        once = self.reduce(x)
        twice = self.pool(once)
        thrice = self.pool(twice)
        return self.merge(torch.cat((once, twice, thrice, self.pool(thrice)), dim=1))


def _block(block: BlockChoice | BlockFactory, channels: int, activation: Activation) -> nn.Module:
    if isinstance(block, BlockChoice):
        return block.build(channels, channels, activation)
    return block(channels, channels)
