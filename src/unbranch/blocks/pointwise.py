"""1x1 convolutions with a stride, that can be trained in channels-last."""

from collections.abc import Sequence
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def layout_of(x: Tensor) -> torch.memory_format:
    """Channels last where the channels of one pixel lie side by side, and not by accident."""
    if x.ndim < 4 or x.stride(1) != 1 or x.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d


def pixels(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Every ``stride``-th pixel: all that a 1x1 convolution with this stride reads. A view."""
    return x[(..., *(slice(None, None, step) for step in stride))]


def _learns(layer: nn.Module) -> bool:
    """A gradient may be asked for. What is exported or compiled for inference stays one convolution."""
    return torch.is_grad_enabled() and (layer.training or not torch.compiler.is_compiling())


def _chosen(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """The pixels that the layer reads, laid out as ``x`` is: a view in steps would pass for the default layout."""
    return pixels(x, layer.stride).contiguous(memory_format=layout_of(x))


class StridedPointwise1d(nn.Conv1d):
    """See `StridedPointwise2d`."""

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c_in w"]) -> Float[Tensor, "n c_out w_out"]:
        """Convolve."""
        if not _learns(self):
            return super().forward(x)
        return F.conv1d(_chosen(self, x), self.weight, self.bias, groups=self.groups)


class StridedPointwise2d(nn.Conv2d):
    """y[o] = w x[stride · o] + b, 1x1, no padding: torch's layer, but for which pixels it is given while gradients are on.

    torch 2.14's backward of such a convolution, in channels-last on a CPU and with few input channels, writes past its memory; with the
    pixels chosen first the numbers are the same and nothing is overwritten.

    >>> StridedPointwise2d(3, 4, 1, stride=2)(torch.ones(2, 3, 5, 7)).shape
    torch.Size([2, 4, 3, 4])
    """

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h_out w_out"]:
        """Convolve."""
        if not _learns(self):
            return super().forward(x)
        return F.conv2d(_chosen(self, x), self.weight, self.bias, groups=self.groups)


class StridedPointwise3d(nn.Conv3d):
    """See `StridedPointwise2d`."""

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c_in d h w"]) -> Float[Tensor, "n c_out d_out h_out w_out"]:
        """Convolve."""
        if not _learns(self):
            return super().forward(x)
        return F.conv3d(_chosen(self, x), self.weight, self.bias, groups=self.groups)


STRIDED_POINTWISE = {1: StridedPointwise1d, 2: StridedPointwise2d, 3: StridedPointwise3d}
