"""1x1 convolutions with a stride, that can be trained in channels-last."""

from collections.abc import Sequence
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


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


class _Strided(nn.modules.conv._ConvNd):
    """In front of one of torch's layers."""

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, input: Float[Tensor, "n c_in *size"]) -> Float[Tensor, "n c_out *out"]:
        """Convolve the pixels that are read, laid out as ``input`` is: a view in steps would pass for the default layout."""
        if not _learns(self):
            return super().forward(input)
        chosen = pixels(input, self.stride).contiguous(memory_format=layout_of(input))
        return _CONVOLVE[len(self.stride)](chosen, self.weight, self.bias, groups=self.groups)


class StridedPointwise1d(_Strided, nn.Conv1d):
    """See `StridedPointwise2d`."""


class StridedPointwise2d(_Strided, nn.Conv2d):
    """y[o] = w x[stride · o] + b, 1x1, no padding: torch's layer, but for which pixels it is given while gradients are on.

    torch 2.14's backward of such a convolution, in channels-last on a CPU and with few input channels, writes past its memory; with the
    pixels chosen first the numbers are the same and nothing is overwritten.

    >>> StridedPointwise2d(3, 4, 1, stride=2)(torch.ones(2, 3, 5, 7)).shape
    torch.Size([2, 4, 3, 4])
    """


class StridedPointwise3d(_Strided, nn.Conv3d):
    """See `StridedPointwise2d`."""


STRIDED_POINTWISE = {1: StridedPointwise1d, 2: StridedPointwise2d, 3: StridedPointwise3d}
