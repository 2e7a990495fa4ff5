"""ACNet's block."""

from torch import nn

from unbranch.blocks.block import Block, Sum
from unbranch.blocks.spec import ConvSpec


def asymmetric(spec: ConvSpec) -> Sum:
    """The kxk branch and, for each axis with more than one tap, a branch along that axis alone, each with its norm."""
    branches: dict[str, nn.Module] = {"dense": spec.conv_norm()}
    for axis, taps in enumerate(spec.kernel):
        line = tuple(taps if i == axis else 1 for i in range(spec.dims))
        if taps > 1 and line != spec.kernel:
            branches[f"axis{axis}"] = spec.conv_norm(line)
    return Sum(branches)


class ACBlock(Block):
    """y = act(norm(w_kk * x) + norm(w_k1 * x) + norm(w_1k * x))  (Ding et al., ACNet, ICCV 2019, arXiv:1908.03930).

    Shapes: (N, in_channels, *size) -> (N, out_channels, *ceil(size / stride)).
    Raises ValueError for whatever makes no convolution.

    >>> ACBlock(4, 8)(torch.ones(1, 4, 7, 5)).shape
    torch.Size([1, 8, 7, 5])
    """

    recipe = staticmethod(asymmetric)
