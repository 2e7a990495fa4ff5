"""What feeds the neck: YOLOv5's own backbone, or a classification network from `unbranch.models`."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks import Deployable
from unbranch.blocks.activation import Activation
from unbranch.models.backbone import Backbone
from unbranch.models.registry import create
from unbranch.models.yolo.recipes import Conv
from unbranch.models.yolov5.layers import C3, SPPF

StageFactory: TypeAlias = Callable[[str, int, int, int], C3]


class CSPBackbone(Deployable, nn.Module):
    """A 6x6 stem, then stages of a strided 3x3 layer and a C3, SPPF behind the last; the maps of stride 8 and
    more.

    `channels` of the stem and each stage, `depths` of each stage's C3; `stage(name, channels in, channels
    out, depth)` makes it, named `stage1`, ….

    >>> net = CSPBackbone((8, 16, 24, 32, 40), (1, 1, 1, 1), lambda name, i, o, depth: C3(i, o, depth))
    >>> [tuple(y.shape[1:]) for y in net(torch.ones(1, 3, 64, 96))]
    [(24, 8, 12), (32, 4, 6), (40, 2, 3)]
    """

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int],
        stage: StageFactory,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.stem = Conv(3, channels[0], 6, 2, activation=activation)
        self.shrink = nn.ModuleList()
        self.stages = nn.ModuleList()
        for i, (before, after, depth) in enumerate(
            zip(channels, channels[1:], depths, strict=False), start=1
        ):
            self.shrink.append(Conv(before, after, 3, 2, activation=activation))
            self.stages.append(stage(f"stage{i}", after, after, depth))
        self.pool = SPPF(channels[-1], channels[-1], activation=activation)
        self.feature_channels = tuple(channels[2:])

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        """Maps of stride 8 and more, fine to coarse."""
        x = self.stem(images)
        features: list[Tensor] = []
        for shrink, stage in zip(self.shrink, self.stages, strict=True):
            x = stage(shrink(x))
            features.append(x)
        return [*features[1:-1], self.pool(features[-1])]


class ClassifierBackbone(Deployable, nn.Module):
    """A classification network by name, its maps of the strides that the head needs, SPPF behind the
    coarsest.

    Raises `ValueError` for a name that is no `Backbone`, or one that has no such strides.

    >>> [y.shape[1] for y in ClassifierBackbone("repvgg_a0", (8, 16, 32), 64)(torch.ones(1, 3, 64, 64))]
    [96, 192, 64]
    """

    def __init__(
        self, name: str, strides: Sequence[int], channels: int, activation: Activation = "silu"
    ) -> None:
        super().__init__()
        try:
            network = create(name, out_indices=tuple(range(2, 2 + len(strides))))
        except (TypeError, ValueError) as error:
            raise ValueError(f"backbone {name!r}, for maps of strides {tuple(strides)}: {error}") from error
        if not isinstance(network, Backbone) or network.feature_strides != tuple(strides):
            raise ValueError(f"backbone {name!r} has no maps of strides {tuple(strides)}")
        self.network = network
        self.pool = SPPF(network.feature_channels[-1], channels, activation=activation)
        self.feature_channels = (*network.feature_channels[:-1], channels)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        """Maps of stride 8 and more, fine to coarse."""
        *fine, coarse = self.network(images)
        return [*fine, self.pool(coarse)]
