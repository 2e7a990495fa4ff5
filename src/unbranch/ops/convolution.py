"""Convolution, plain and transposed: ``y = W * x + b``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unbranch.affine import Affine, NotLinear
from unbranch.ops.table import Argument, Map, constant, onnx_padding, operand, per_axis, reads


@dataclass(frozen=True, eq=False)
class Convolution(Map):
    """A convolution layer's op; ``weight`` as torch keeps it, (out, in/groups, *k), transposed (in, out/groups, *k)."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False

    def affine(self, channels: int) -> Affine:
        """The weight, grouped."""
        weight = self.weight.unflatten(0, (self.groups, -1))
        if self.transposed:
            weight = weight.transpose(1, 2)
        return Affine(weight, self.bias, self.stride, self.padding, self.dilation, transposed=self.transposed)


def build(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    transposed: bool = False,
    output_padding: Any = 0,
) -> Convolution:
    """The record of a convolution call in any spelling; ``padding`` holds a number per axis, or a pair."""
    value, rank = operand(x, "the input"), constant(weight, "the weight").ndim - 2
    if constant(bias, "the bias") is not None and bias.ndim != 1:
        raise NotLinear(f"a bias of shape {tuple(bias.shape)}")
    if value.ndim != rank + 2:
        raise NotLinear(f"an unbatched input of shape {value.shape}")
    extra = per_axis(output_padding, rank)
    pads = [pad if isinstance(pad, tuple) else (pad, pad) for pad in padding]
    pads = [(before, after - e) for (before, after), e in zip(pads, extra, strict=True)]
    return Convolution(
        weight, bias, per_axis(stride, rank), tuple(pads), per_axis(dilation, rank), groups, transposed
    )


@reads("aten.convolution.default")
def convolution(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Convolution:
    rank = constant(weight, "the weight").ndim - 2
    pads = per_axis(padding, rank)
    return build(
        input, weight, bias, stride, pads, dilation, groups, transposed, output_padding if transposed else 0
    )


@reads("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
def conv(input: Any, weight: Any, bias=None, stride=1, padding=0, dilation=1, groups: int = 1) -> Convolution:
    pads = per_axis(padding, constant(weight, "the weight").ndim - 2)
    return build(input, weight, bias, stride, pads, dilation, groups)


@reads("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")
def conv_padding(
    input: Any,
    weight: Any,
    bias=None,
    stride=1,
    padding: str = "valid",
    dilation=1,
    groups: int = 1,
) -> Convolution:
    rank = constant(weight, "the weight").ndim - 2
    spare = [d * (k - 1) for d, k in zip(per_axis(dilation, rank), weight.shape[2:], strict=True)]
    pads = [(n // 2, n - n // 2) if padding == "same" else (0, 0) for n in spare]
    return build(input, weight, bias, stride, pads, dilation, groups)


@reads("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(
    input: Any,
    weight: Any,
    bias=None,
    stride=1,
    padding=0,
    output_padding=0,
    groups: int = 1,
    dilation=1,
) -> Convolution:
    pads = per_axis(padding, constant(weight, "the weight").ndim - 2)
    return build(input, weight, bias, stride, pads, dilation, groups, True, output_padding)


@reads("onnx.Conv")
def onnx_conv(
    X: Argument,
    W: Argument,
    B: Argument = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Convolution:
    kernel = constant(W, "the weight").shape[2:]
    stride, dilation = strides or (1,) * len(kernel), dilations or (1,) * len(kernel)
    size = operand(X, "the input").shape[2:]
    padding = onnx_padding(size, kernel, stride, dilation, auto_pad, pads)
    return build(X, W, B, stride, padding, dilation, group)


@reads("onnx.ConvTranspose")
def onnx_conv_transpose(
    X: Argument,
    W: Argument,
    B: Argument = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Convolution:
    kernel = constant(W, "the weight").shape[2:]
    ones = (1,) * len(kernel)
    if output_shape is not None or auto_pad not in ("NOTSET", "VALID"):
        raise NotLinear("a transposed convolution whose padding follows from the size of its output")
    padding = onnx_padding((), kernel, ones, ones, auto_pad, pads)
    extra = output_padding or (0,) * len(kernel)
    return build(X, W, B, strides or ones, padding, dilations or ones, group, True, extra)
