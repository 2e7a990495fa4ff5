"""MobileOne: depthwise and pointwise over-parameterized blocks (Vasu et al., 2023, arXiv:2206.04040)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Unpack

from torch import nn

from unbranch.blocks import MobileOneBlock
from unbranch.models.backbone import Backbone, BackboneOptions, Stage
from unbranch.models.registry import register


class MobileOne(Backbone):
    """A 3x3 stem and stages of ``depths[i]`` pairs: depthwise 3x3, then pointwise to ``widths[i + 1]``.

    ``num_branches`` convolutions in each block behind the stem; the last ``se_depths[i]`` pairs of a stage
    squeeze and excite by 1/16 after both. ``block`` makes a block from (in, out, kernel, stride, groups=,
    num_branches=, se=). Options, shapes and errors are ``Backbone``'s.

    >>> MobileOne((1, 2), (32, 32, 64), num_branches=2, out_indices=(1, 2)).feature_strides
    (4, 8)
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        num_branches: int = 1,
        se_depths: Sequence[int] | None = None,
        block: Callable[..., nn.Module] = MobileOneBlock,
        **options: Unpack[BackboneOptions],
    ) -> None:
        squeezed = (0,) * len(depths) if se_depths is None else tuple(se_depths)
        if len(squeezed) != len(depths):
            raise ValueError(f"se_depths={squeezed} for depths={depths}: give one for each stage")

        def stage(at: Stage) -> nn.Module:
            layers = nn.Sequential()
            for i in range(at.depth):
                c_in, stride = (at.c_in, at.stride) if i == 0 else (at.c_out, 1)
                se = 1 / 16 if i >= at.depth - squeezed[at.number - 1] else None
                layers.append(block(c_in, c_in, 3, stride, groups=c_in, num_branches=num_branches, se=se))
                layers.append(block(c_in, at.c_out, 1, 1, num_branches=num_branches, se=se))
            return layers

        super().__init__(
            depths, widths, lambda c_in, c_out, stride: block(c_in, c_out, 3, stride), stage, **options
        )


# name: factors of the stages' base widths, convolutions in a block, pairs with SE at the end of each stage
_TABLE: dict[str, tuple[tuple[float, ...], int, tuple[int, ...]]] = {
    "mobileone_s0": ((0.75, 1, 1, 2), 4, (0, 0, 0, 0)),
    "mobileone_s1": ((1.5, 1.5, 2, 2.5), 1, (0, 0, 0, 0)),
    "mobileone_s2": ((1.5, 2, 2.5, 4), 1, (0, 0, 0, 0)),
    "mobileone_s3": ((2, 2.5, 3, 4), 1, (0, 0, 0, 0)),
    "mobileone_s4": ((3, 3.5, 3.5, 4), 1, (0, 0, 5, 1)),
}

for _name, (_factors, _branches, _se) in _TABLE.items():
    _widths = [int(base * factor) for base, factor in zip((64, 128, 256, 512), _factors, strict=True)]
    register(
        _name,
        partial(
            MobileOne, (2, 8, 10, 1), (min(64, _widths[0]), *_widths), num_branches=_branches, se_depths=_se
        ),
    )
