"""Large kernels: RepLKNet's and UniRepLKNet's."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

from torch import nn

from unbranch.blocks.block import Block, BlockOptions, Sum
from unbranch.blocks.spec import Axes, ConvSpec


def beside_small(spec: ConvSpec, small: int) -> Sum:
    """The large kernel and a small one, each with its norm."""
    if any(small > k for k in spec.kernel):
        raise ValueError(
            f"small={small} is larger than the kernel {spec.kernel}: use a smaller one, or another block"
        )
    return Sum({"large": spec.conv_norm(), "small": spec.conv_norm(small)})


def beside_dilated(spec: ConvSpec, kernels: Sequence[int], dilations: Sequence[int]) -> Sum:
    """The large kernel and small ones that reach as far by dilation, each with its norm."""
    branches: dict[str, nn.Module] = {"large": spec.conv_norm()}
    for number, (k, d) in enumerate(zip(kernels, dilations, strict=True)):
        if any(d * ((k - 1) // 2) > (size - 1) // 2 or d * (k // 2) > size // 2 for size in spec.kernel):
            raise ValueError(
                f"a {k}-tap kernel with dilation {d} reaches beyond the kernel {spec.kernel}: use smaller ones, or another block"
            )
        # Of the large kernel's own taps, which may be dilated themselves.
        sparse = replace(spec, kernel=(k,) * spec.dims, dilation=tuple(d * own for own in spec.dilation))
        branches[f"dilated{number}"] = sparse.conv_norm()
    return Sum(branches)


class RepLKBlock(Block):
    """y = act(norm(w_K * x) + norm(w_k * x)), K large  (Ding et al., RepLKNet, CVPR 2022, arXiv:2203.06717).

    Shapes: (N, channels, *size) -> (N, channels, *ceil(size / stride)); depthwise. Raises ValueError for ``small`` > K.

    >>> RepLKBlock(6, 13)(torch.ones(1, 6, 9, 5)).shape
    torch.Size([1, 6, 9, 5])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Axes = 31,
        stride: Axes = 1,
        *,
        small: int = 5,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size,
            stride,
            lambda spec: beside_small(spec, small),
            **{**options, "groups": channels},
        )


class DilatedReparamBlock(Block):
    """y = act(norm(w_K * x) + sum_i norm(w_i *_{d_i} x))  (Ding et al., UniRepLKNet, CVPR 2024, arXiv:2311.15599).

    ``kernels`` and ``dilations`` name the small branches, whose dilations count the large kernel's taps. Shapes: (N, channels, *size) ->
    the same; depthwise. Raises ValueError for a branch that reaches beyond the large kernel.

    >>> DilatedReparamBlock(6, 13)(torch.ones(1, 6, 9, 5)).shape
    torch.Size([1, 6, 9, 5])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Axes = 13,
        *,
        kernels: Sequence[int] = (5, 7, 3, 3, 3),
        dilations: Sequence[int] = (1, 2, 3, 4, 5),
        **options: Unpack[BlockOptions],
    ) -> None:
        def recipe(spec: ConvSpec) -> Sum:
            return beside_dilated(spec, kernels, dilations)

        super().__init__(channels, channels, kernel_size, 1, recipe, **{**options, "groups": channels})
