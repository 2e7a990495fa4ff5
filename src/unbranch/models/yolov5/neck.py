"""The path-aggregation neck: coarse features flow down to fine ones and back up."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks import Deployable
from unbranch.blocks.activation import Activation
from unbranch.models.yolo.recipes import Conv
from unbranch.models.yolov5.layers import C3

StageFactory: TypeAlias = Callable[[str, int, int], C3]


class Neck(Deployable, nn.Module):
    """Features of L levels in, fine to coarse, features of the same sizes with `channels` out  (Liu et al.,
    2018, PANet).

    Down: a 1x1 layer, upsampled by 2, joined with the finer level, a C3. Up: a strided 3x3 layer, joined with
    what the way down left, a C3. `stage(name, channels in, channels out)` makes the C3s, named `neck1`,
    `neck2`, … in running order.

    >>> neck = Neck([8, 16, 32], [16, 32, 64], lambda name, i, o: C3(i, o, residual=False))
    >>> [y.shape[1] for y in neck([torch.ones(1, c, 64 // c, 64 // c) for c in (8, 16, 32)])]
    [16, 32, 64]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: Sequence[int],
        stage: StageFactory,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        coarse_first = range(len(channels) - 1, 0, -1)
        names = iter(f"neck{i}" for i in range(1, 2 * len(channels) - 1))
        self.reduce = nn.ModuleList()
        self.downward = nn.ModuleList()
        above = in_channels[-1]
        for level in coarse_first:
            below = channels[level - 1]
            self.reduce.append(Conv(above, below, activation=activation))
            self.downward.append(stage(next(names), below + in_channels[level - 1], below))
            above = below
        self.shrink = nn.ModuleList()
        self.upward = nn.ModuleList()
        for level in range(1, len(channels)):
            below = channels[level - 1]
            self.shrink.append(Conv(below, below, 3, 2, activation=activation))
            self.upward.append(stage(next(names), 2 * below, channels[level]))
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, features: Sequence[Float[Tensor, "n _ _ _"]]) -> list[Float[Tensor, "n _ _ _"]]:
        """Down, then up."""
        x = features[-1]
        reduced: list[Tensor] = []
        for narrow, stage, finer in zip(self.reduce, self.downward, features[-2::-1], strict=True):
            reduced.append(narrow(x))
            x = stage(torch.cat((self.enlarge(reduced[-1]), finer), dim=1))
        levels = [x]
        for shrink, stage, kept in zip(self.shrink, self.upward, reduced[::-1], strict=True):
            levels.append(stage(torch.cat((shrink(levels[-1]), kept), dim=1)))
        return levels
