"""Squeeze-and-excite: channels weighted by what the whole picture holds."""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks.spec import CONVOLUTIONS


class SqueezeExcite(nn.Module):
    """y = x * sigmoid(expand(relu(reduce(mean(x)))))  (Hu et al., 2018, arXiv:1709.01507).

    Shapes: (N, C, *size) -> the same. ``ratio`` is squeezed channels / channels, in (0, 1]; at least one
    channel is kept. Raises ValueError for a ratio outside (0, 1].

    >>> SqueezeExcite(64, ratio=1 / 16)(torch.ones(2, 64, 5, 7)).shape
    torch.Size([2, 64, 5, 7])
    """

    def __init__(self, channels: int, ratio: float, *, dims: int = 2) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise ValueError(f"the squeeze ratio must lie in (0, 1], got {ratio}")
        squeezed = max(1, int(channels * ratio))
        self.reduce = CONVOLUTIONS[dims](channels, squeezed, 1)
        self.expand = CONVOLUTIONS[dims](squeezed, channels, 1)

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c *size"]) -> Float[Tensor, "n c *size"]:
        """Weigh the channels."""
        pooled = x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(pooled))))
