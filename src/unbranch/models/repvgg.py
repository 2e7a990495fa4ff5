"""RepVGG: stages of 3x3 blocks and nothing else (Ding et al., 2021, arXiv:2101.03697)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Unpack

from torch import nn

from unbranch.blocks import RepVGGBlock
from unbranch.models.backbone import Backbone, BackboneOptions, Stage
from unbranch.models.registry import register


class RepVGG(Backbone):
    """A 3x3 stem of ``widths[0]`` channels and stages of ``depths[i]`` blocks with ``widths[i + 1]``.

    The first block of a stage has its stride.

    Every second block behind the stem has ``groups`` groups, the others one. ``block`` makes a block from
    (in, out, kernel, stride, groups=, se=), for other blocks of the kind. Options, shapes and errors are
    ``Backbone``'s.

    >>> RepVGG((1, 2), (16, 32, 64), strides=(1, 2, 2), in_channels=1)(torch.ones(1, 1, 28, 28)).shape
    torch.Size([1, 1000])
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        groups: int = 1,
        se: float | None = None,
        block: Callable[..., nn.Module] = RepVGGBlock,
        **options: Unpack[BackboneOptions],
    ) -> None:
        def stage(at: Stage) -> nn.Module:
            layers = nn.Sequential()
            for i in range(at.depth):
                c_in, stride = (at.c_in, at.stride) if i == 0 else (at.c_out, 1)
                grouped = (at.before + i) % 2 == 1
                layers.append(block(c_in, at.c_out, 3, stride, groups=groups if grouped else 1, se=se))
            return layers

        super().__init__(
            depths, widths, lambda c_in, c_out, stride: block(c_in, c_out, 3, stride, se=se), stage, **options
        )


_A, _B, _D = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)

# name: depths, factors of the base widths of stages 1-3 and of stage 4, groups, SE ratio
_TABLE: dict[str, tuple[tuple[int, ...], float, float, int, float | None]] = {
    "repvgg_a0": (_A, 0.75, 2.5, 1, None),
    "repvgg_a1": (_A, 1, 2.5, 1, None),
    "repvgg_a2": (_A, 1.5, 2.75, 1, None),
    "repvgg_b0": (_B, 1, 2.5, 1, None),
    "repvgg_b1": (_B, 2, 4, 1, None),
    "repvgg_b1g2": (_B, 2, 4, 2, None),
    "repvgg_b1g4": (_B, 2, 4, 4, None),
    "repvgg_b2": (_B, 2.5, 5, 1, None),
    "repvgg_b2g2": (_B, 2.5, 5, 2, None),
    "repvgg_b2g4": (_B, 2.5, 5, 4, None),
    "repvgg_b3": (_B, 3, 5, 1, None),
    "repvgg_b3g2": (_B, 3, 5, 2, None),
    "repvgg_b3g4": (_B, 3, 5, 4, None),
    "repvgg_d2se": (_D, 2.5, 5, 1, 1 / 16),
}

for _name, (_depths, _a, _b, _groups, _se) in _TABLE.items():
    _widths = (min(64, int(64 * _a)), int(64 * _a), int(128 * _a), int(256 * _a), int(512 * _b))
    register(_name, partial(RepVGG, _depths, _widths, groups=_groups, se=_se))
