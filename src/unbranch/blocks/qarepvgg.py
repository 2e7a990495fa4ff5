"""QARepVGG's block."""

from torch import nn

from unbranch.blocks.block import Block, Sum
from unbranch.blocks.spec import ConvSpec


def norm_after_sum(spec: ConvSpec) -> Sum:
    """kxk with a norm, 1x1 and the input without, and one norm for the sum: what survives quantization."""
    branches: dict[str, nn.Module] = {"dense": spec.conv_norm()}
    if not spec.is_pointwise:
        branches["pointwise"] = nn.Sequential(spec.conv(1))
    if spec.carries_input:
        branches["shortcut"] = spec.carried()
    return Sum(branches, spec.norm(spec.out_channels))


class QARepVGGBlock(Block):
    """y = act(norm(norm(w_k * x) + w_1 * x + x))  (Chu et al., QARepVGG, AAAI 2024, arXiv:2212.01593).

    Shapes: (N, in_channels, *size) -> (N, out_channels, *ceil(size / stride)).
    Raises ValueError for whatever makes no convolution.

    >>> QARepVGGBlock(4, 8, stride=2)(torch.ones(1, 4, 7, 5)).shape
    torch.Size([1, 8, 4, 3])
    """

    recipe = staticmethod(norm_after_sum)
