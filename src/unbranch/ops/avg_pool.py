"""Average pooling: ``y = mean of k taps``, a depthwise convolution whose weights are all 1/k."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from unbranch.affine import Affine, NotLinear
from unbranch.ops.table import Argument, Map, onnx_padding, operand, per_axis, reads


@dataclass(frozen=True)
class AvgPool(Map):
    """A mean over a window; a border mean that divides by fewer taps is no convolution."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    ceil: bool
    counts_padding: bool
    divisor: int | None
    dilation: tuple[int, ...]

    def affine(self, channels: int) -> Affine:
        """Depthwise, constant."""
        if self.ceil and any(s != 1 for s in self.stride):
            raise NotLinear(
                "an average pool with ceil_mode: its last window can hang over the edge and divides by less"
            )
        padded = any(side for pair in self.padding for side in pair)
        if padded and not self.counts_padding and self.divisor is None:
            raise NotLinear(
                f"an average pool with padding {self.padding} that divides by fewer taps at the border"
            )
        value = 1.0 / (self.divisor or prod(self.kernel))
        weight = torch.full((channels, 1, 1, *self.kernel), value, dtype=torch.float64)
        return Affine(weight, None, self.stride, self.padding, self.dilation)


def build(
    x,
    kernel,
    stride,
    padding,
    ceil: bool,
    counts_padding: bool,
    divisor: int | None,
    rank: int,
    dilation: int | Sequence[int] = 1,
) -> AvgPool:
    """The record of a pooling call in any spelling; ``padding`` holds numbers, or a pair per axis."""
    value = operand(x, "the input")
    if value.ndim != rank + 2:
        raise NotLinear(f"an unbatched input of shape {value.shape}")
    size = per_axis(kernel, rank)
    stride = size if isinstance(stride, Sequence) and not stride else per_axis(stride, rank)
    if isinstance(padding, int) or not any(isinstance(pad, tuple) for pad in padding):
        padding = [(pad, pad) for pad in per_axis(padding, rank)]
    return AvgPool(size, stride, tuple(padding), ceil, counts_padding, divisor, per_axis(dilation, rank))


@reads("aten.avg_pool1d.default")
def avg_pool1d(
    self: Any, kernel_size, stride=(), padding=0, ceil_mode=False, count_include_pad=True
) -> AvgPool:
    return build(self, kernel_size, stride, padding, ceil_mode, count_include_pad, None, 1)


@reads("aten.avg_pool2d.default")
def avg_pool2d(
    self: Any,
    kernel_size,
    stride=(),
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
) -> AvgPool:
    return build(self, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, 2)


@reads("aten.avg_pool3d.default")
def avg_pool3d(
    self: Any,
    kernel_size,
    stride=(),
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
) -> AvgPool:
    return build(self, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, 3)


@reads("onnx.AveragePool")
def onnx_average_pool(
    X: Argument,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> AvgPool:
    rank = len(kernel_shape)
    stride, dilation = strides or (1,) * rank, dilations or (1,) * rank
    size = operand(X, "the input").shape[2:]
    padding = onnx_padding(size, kernel_shape, stride, dilation, auto_pad, pads)
    return build(
        X, kernel_shape, stride, padding, bool(ceil_mode), bool(count_include_pad), None, rank, dilation
    )
