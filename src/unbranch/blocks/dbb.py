"""The Diverse Branch Block."""

from collections import OrderedDict

from torch import nn

from unbranch.blocks.block import Block, Sum
from unbranch.blocks.border import bordered
from unbranch.blocks.spec import ConvSpec

POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def diverse(spec: ConvSpec) -> Sum:
    """kxk, 1x1, 1x1 -> kxk and 1x1 -> average pool, each with its norms; a kernel of one tap keeps the first two."""
    branches: dict[str, nn.Module] = {"dense": spec.conv_norm(), "pointwise": spec.conv_norm(1)}
    if spec.is_pointwise:
        return Sum(branches)
    inner, outer = (spec.pointwise(spec.in_channels, out) for out in (spec.in_channels, spec.out_channels))
    squeezed = OrderedDict(conv=spec.unpadded(), norm=spec.norm(spec.out_channels))
    branches["squeezed"] = bordered(spec, inner.conv_norm(), squeezed)
    if all(d == 1 for d in spec.dilation):
        pool = OrderedDict(pool=POOLS[spec.dims](spec.kernel, spec.stride), norm=spec.norm(spec.out_channels))
        branches["averaged"] = bordered(spec, outer.conv_norm(), pool)
    return Sum(branches)


class DiverseBranchBlock(Block):
    """y = act(norm(w_k * x) + norm(w_1 * x) + norm(w' * pad(norm(w_1' * x))) + norm(mean(pad(norm(w_1'' * x)))))

    (Ding et al., Diverse Branch Block, CVPR 2021, arXiv:2103.13425). Where one layer follows another a border of zeros
    between them holds what the first makes of zeros. A dilated block goes without the average.

    Shapes: (N, in_channels, *size) -> (N, out_channels, *ceil(size / stride)).
    Raises ValueError for whatever makes no convolution.

    >>> DiverseBranchBlock(4, 8)(torch.ones(1, 4, 7, 5)).shape
    torch.Size([1, 8, 7, 5])
    """

    recipe = staticmethod(diverse)
