"""A stem, stages that shrink the map, and a linear head or a feature pyramid."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from typing import NamedTuple, TypeAlias, TypedDict, Unpack, no_type_check

from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks import Deployable
from unbranch.blocks.spec import check_options


class Stage(NamedTuple):
    """Where a stage stands: its number from 1, the blocks between the stem and it, and its own shape."""

    number: int
    before: int
    depth: int
    c_in: int
    c_out: int
    stride: int


StemFactory: TypeAlias = Callable[[int, int, int], nn.Module]
StageFactory: TypeAlias = Callable[[Stage], nn.Module]


class BackboneOptions(TypedDict, total=False):
    """What every backbone takes besides its architecture."""

    num_classes: int
    """Outputs of the linear head, 1000 by default; 0 for the pooled features themselves."""
    in_channels: int
    """Channels of the picture, 3 by default."""
    out_indices: Sequence[int] | None
    """Levels whose maps come out, in place of the head: 0 is the stem, i >= 1 is stage i."""
    strides: Sequence[int] | None
    """The stem's and each stage's; 2 by default."""


class Backbone(Deployable, nn.Module):
    """logits = head(mean(stages(stem(x)))), or a list of maps where ``out_indices`` is given.

    ``feature_channels`` and ``feature_strides`` say what comes out: (N, num_classes) without it, else maps of
    (N, feature_channels[j], H / feature_strides[j], W / feature_strides[j]), sizes rounded up. A pyramid has
    no head, nor a stage behind the last level that it gives.

    Shapes: (N, in_channels, H, W). Raises ValueError for depths, widths and strides whose lengths do not
    agree and for levels that do not exist, repeat or go backwards, TypeError for an option of another name.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        make_stem: StemFactory,
        make_stage: StageFactory,
        **options: Unpack[BackboneOptions],
    ) -> None:
        super().__init__()
        check_options(options, BackboneOptions)
        strides = tuple(options.get("strides") or (2,) * len(widths))
        if not len(depths) + 1 == len(widths) == len(strides):
            raise ValueError(
                f"depths={depths} of the stages, widths={widths} and strides={strides} of the stem and the "
                "stages: the lengths do not agree"
            )
        self.out_indices = _levels(options.get("out_indices"), len(depths))
        kept = (len(depths),) if self.out_indices is None else self.out_indices
        reduction = tuple(accumulate(strides, mul))
        self.feature_channels = tuple(widths[i] for i in kept)
        self.feature_strides = tuple(reduction[i] for i in kept)
        self.stem = make_stem(options.get("in_channels", 3), widths[0], strides[0])
        self.stages = nn.ModuleList(
            make_stage(Stage(i, sum(depths[: i - 1]), depths[i - 1], widths[i - 1], widths[i], strides[i]))
            for i in range(1, kept[-1] + 1)
        )
        if self.out_indices is None:
            classes = options.get("num_classes", 1000)
            self.head = nn.Linear(widths[-1], classes) if classes else nn.Identity()

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(
        self, x: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n classes"] | list[Float[Tensor, "n _ _ _"]]:
        """Logits, or the maps that ``out_indices`` asks for."""
        levels = [self.stem(x)]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        if self.out_indices is not None:
            return [levels[i] for i in self.out_indices]
        return self.head(levels[-1].mean((2, 3)))


def _levels(wanted: Sequence[int] | None, last: int) -> tuple[int, ...] | None:
    if wanted is None:
        return None
    levels = tuple(wanted)
    if not levels or list(levels) != sorted(set(levels)) or levels[0] < 0 or levels[-1] > last:
        raise ValueError(f"out_indices={levels} must rise within the levels 0 (the stem) to {last}")
    return levels
