"""RepVGG's block."""

from functools import partial
from typing import Unpack

from torch import nn

from unbranch.blocks.block import Block, BlockOptions, Sum
from unbranch.blocks.shortcuts import shortcut_branch
from unbranch.blocks.spec import Axes, ConvSpec


def over_parameterized(spec: ConvSpec, *, num_branches: int, shortcut: str | None) -> Sum:
    """The sum of ``num_branches`` kxk branches, a 1x1 where k > 1 and the shortcut, each with its norm."""
    if num_branches < 1:
        raise ValueError(f"num_branches must be at least 1, got {num_branches}")
    branches: dict[str, nn.Module] = {f"dense{i}": spec.conv_norm() for i in range(num_branches)}
    if not spec.is_pointwise:
        branches["pointwise"] = spec.conv_norm(1)
    carried = shortcut_branch(shortcut, spec)
    if carried is not None:
        branches["shortcut"] = carried
    return Sum(branches)


class RepVGGBlock(Block):
    """y = act(se(norm(w_k * x) + norm(w_1 * x) + norm(x)))  (Ding et al., 2021, arXiv:2101.03697).

    kxk, 1x1 and shortcut; ``num_branches`` kxk convolutions in place of one. ``shortcut`` is ``"auto"`` (the
    input where channels stay and the stride is 1), ``"identity"``, ``"conv"``, ``"average"``, ``"select"``, ``"linear"``
    or None.

    Shapes: (N, in_channels, *size) -> (N, out_channels, *ceil(size / stride)); zero-dimension batches pass.
    Raises ValueError for an identity that changes channels or strides and for whatever makes no convolution.

    >>> block = RepVGGBlock(16, 32, stride=2, shortcut="average").eval()
    >>> block.switch_to_deploy()
    >>> block(torch.ones(1, 16, 49, 49)).shape
    torch.Size([1, 32, 25, 25])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Axes = 3,
        stride: Axes = 1,
        *,
        num_branches: int = 1,
        shortcut: str | None = "auto",
        **options: Unpack[BlockOptions],
    ) -> None:
        recipe = partial(over_parameterized, num_branches=num_branches, shortcut=shortcut)
        super().__init__(in_channels, out_channels, kernel_size, stride, recipe, **options)
