"""The edge-oriented block of super-resolution networks."""

from collections import OrderedDict
from dataclasses import replace
from typing import Unpack, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks.block import Block, BlockOptions, Sum
from unbranch.blocks.border import bordered
from unbranch.blocks.spec import Axes, ConvSpec

FILTERS = {
    "sobel_x": ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    "sobel_y": ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    "laplacian": ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
}


class ScaledFilter(nn.Module):
    """y_c = s_c (f * x_c) + b_c: a fixed 3x3 filter on each channel, with a learnt scale and bias; not padded."""

    filter: Tensor

    def __init__(
        self,
        channels: int,
        taps: tuple[tuple[int, ...], ...],
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.register_buffer("filter", torch.tensor(taps, dtype=torch.get_default_dtype()), persistent=False)
        self.scale = nn.Parameter(torch.randn(channels, 1, 1, 1) * 1e-3)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.stride = stride
        self.dilation = dilation

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Filter."""
        weight = self.scale * self.filter
        return nn.functional.conv2d(x, weight, self.bias, self.stride, 0, self.dilation, len(weight))


def edge_oriented(spec: ConvSpec, widen: float) -> Sum:
    """3x3, 1x1 -> 3x3, and 1x1 -> Sobel and Laplacian filters, none with a norm."""
    if spec.kernel != (3, 3):
        size = "x".join(map(str, spec.kernel))
        raise ValueError(
            f"the filters of an edge-oriented block are 3x3, the kernel is {size}: use another block"
        )
    middle = spec.groups * max(1, round(widen * spec.out_channels / spec.groups))
    inner, outer = (spec.pointwise(spec.in_channels, out) for out in (middle, spec.out_channels))
    branches: dict[str, nn.Module] = {"dense": nn.Sequential(spec.conv(bias=True))}
    after = OrderedDict(conv=replace(spec, in_channels=middle).unpadded(bias=True))
    branches["widened"] = bordered(spec, nn.Sequential(inner.conv(bias=True)), after)
    for name, taps in FILTERS.items():
        first = nn.Sequential(outer.conv(bias=True))
        scaled = ScaledFilter(spec.out_channels, taps, spec.stride, spec.dilation)
        branches[name] = bordered(spec, first, OrderedDict(filter=scaled))
    return Sum(branches)


class EdgeOrientedBlock(Block):
    """y = act(w_3 * x + w_3' * pad(w_1 * x) + sum_f s_f (f * pad(w_f * x)) + b)  (Zhang et al., ECBSR, ACM MM 2021).

    Shapes: (N, in_channels, h, w) -> (N, out_channels, *ceil(size / stride)). Raises ValueError for anything but a 3x3.

    >>> EdgeOrientedBlock(4, 8)(torch.ones(1, 4, 7, 5)).shape
    torch.Size([1, 8, 7, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Axes = 1,
        *,
        widen: float = 2.0,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__(
            in_channels, out_channels, 3, stride, lambda spec: edge_oriented(spec, widen), **options
        )
