"""What a YOLOv7 is made of: the efficient layer aggregation, the ways down and up, the pooling."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks import Deployable
from unbranch.blocks.activation import Activation
from unbranch.models.yolo.recipes import PLAIN, BlockChoice, Conv


class ELAN(Deployable, nn.Module):
    """y = merge(… ‖ c₂ ‖ c₁ ‖ main(x) ‖ bypass(x)), c₁ = block(main(x)), c_i = block(c_{i-1}), ‖ along the
    channels.

    main and bypass are 1x1 layers of `width` channels, the `depth` blocks 3x3 ones of `inner`. All c_i are
    joined where `dense`, every second one, the last included, where not.

    >>> ELAN(16, 24, width=8, inner=4, depth=4)(torch.ones(1, 16, 5, 7)).shape
    torch.Size([1, 24, 5, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        inner: int,
        depth: int = 4,
        dense: bool = True,
        block: BlockChoice = PLAIN,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.bypass = Conv(in_channels, width, activation=activation)
        self.main = Conv(in_channels, width, activation=activation)
        self.blocks = nn.ModuleList(
            block.build(inner if i else width, inner, activation) for i in range(depth)
        )
        self.step = 1 if dense else 2
        joined = 2 * width + len(range(depth)[:: -self.step]) * inner
        self.merge = Conv(joined, out_channels, activation=activation)

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h w"]:
        """A row of blocks; what they make on the way is joined and merged."""
        last = self.main(x)
        start = (last, self.bypass(x))
        made: list[Tensor] = []
        for block in self.blocks:
            last = block(last)
            made.append(last)
        return self.merge(torch.cat((*made[:: -self.step], *start), dim=1))


class Shrink(Deployable, nn.Module):
    """y = down(x) ‖ others, at half the size: a strided 3x3 layer, or, where `pooled`, half of the channels
    by 1x1 and strided 3x3 layers and half by a 2x2 maximum and a 1x1.

    >>> Shrink(16, 8)(torch.ones(1, 16, 6, 8), torch.ones(1, 3, 3, 4)).shape
    torch.Size([1, 11, 3, 4])
    """

    def __init__(
        self, in_channels: int, channels: int, pooled: bool = True, activation: Activation = "silu"
    ) -> None:
        super().__init__()
        half = channels // 2
        self.pool = nn.Identity()
        if pooled:
            self.down = nn.Sequential(
                Conv(in_channels, half, activation=activation), Conv(half, half, 3, 2, activation=activation)
            )
            self.pool = nn.Sequential(nn.MaxPool2d(2), Conv(in_channels, half, activation=activation))
        else:
            self.down = Conv(in_channels, channels, 3, 2, activation=activation)
        self.pooled = pooled

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Both ways down, and what has that size already."""
        pooled = (self.pool(x),) if self.pooled else ()
        return torch.cat((self.down(x), *pooled, *others), dim=1)


class Join(Deployable, nn.Module):
    """y = lateral(fine) ‖ upsampled(reduce(coarse)), each of `channels`, at the size of the fine map.

    >>> Join(16, 8, 4)(torch.ones(1, 16, 3, 4), torch.ones(1, 8, 6, 8)).shape
    torch.Size([1, 8, 6, 8])
    """

    def __init__(self, coarse: int, fine: int, channels: int, activation: Activation = "silu") -> None:
        super().__init__()
        self.reduce = Conv(coarse, channels, activation=activation)
        self.lateral = Conv(fine, channels, activation=activation)
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(
        self, coarse: Float[Tensor, "n _ _ _"], fine: Float[Tensor, "n _ h w"]
    ) -> Float[Tensor, "n _ h w"]:
        """Narrow both, enlarge one, join."""
        return torch.cat((self.lateral(fine), self.enlarge(self.reduce(coarse))), dim=1)


class SPPCSPC(Deployable, nn.Module):
    """y = merge(after(x' ‖ p(x') ‖ p(p(x')) ‖ p(p(p(x')))) ‖ bypass(x)), p a 5x5 maximum: pooling over 5, 9
    and 13 pixels.

    x' = before(x) and `after` are three and two layers with a 3x3 each; where `light`, one 1x1 each.

    >>> SPPCSPC(16, 8)(torch.ones(1, 16, 3, 5)).shape
    torch.Size([1, 8, 3, 5])
    """

    def __init__(
        self, in_channels: int, channels: int, light: bool = False, activation: Activation = "silu"
    ) -> None:
        super().__init__()

        def layer(c_in: int, kernel_size: int = 1) -> Conv:
            return Conv(c_in, channels, kernel_size, activation=activation)

        self.bypass = layer(in_channels)
        more = () if light else (layer(channels, 3), layer(channels))
        self.before = nn.Sequential(layer(in_channels), *more)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.after = nn.Sequential(layer(4 * channels), *(() if light else (layer(channels, 3),)))
        self.merge = layer(2 * channels)

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h w"]:
        """Pool one half at three sizes, join it with the other."""
        once = self.before(x)
        twice = self.pool(once)
        thrice = self.pool(twice)
        pooled = self.after(torch.cat((once, twice, thrice, self.pool(thrice)), dim=1))
        return self.merge(torch.cat((pooled, self.bypass(x)), dim=1))
