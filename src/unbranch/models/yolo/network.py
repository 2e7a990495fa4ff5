"""What every YOLO of ours is: features of each level, a head of anchors, and a description that says it all."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, Self, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks import Branches, Deployable
from unbranch.models.yolo.data import YOLODescription
from unbranch.models.yolo.head import Detect, RawMap

Described = TypeVar("Described", bound=YOLODescription)


class YOLO(Deployable, nn.Module, Generic[Described]):
    """An anchor-based detector, built from a description.

    Images (N, 3, H, W) in 0..1, H and W multiples of the largest stride. In training mode it returns the raw
    maps of each level, (N, anchors, rows, columns, 5 + classes) logits; in eval mode the decoded predictions
    (N, total, 5 + classes): x, y, w, h in pixels, objectness and class probabilities.

    A network of this kind gives `features`, and has its head in `detect`.
    """

    detect: Detect

    def __init__(self, description: Described) -> None:
        super().__init__()
        self._description = description

    @abstractmethod
    def features(self, images: Float[Tensor, "n 3 h w"]) -> Sequence[Float[Tensor, "n _ _ _"]]:
        """What the head looks at: a map of each level, fine to coarse."""

    @property
    def names(self) -> list[str]:
        """The names of the classes, in the order of their indices."""
        return list(self._description.names)

    @property
    def stride(self) -> int:
        """Image sides must be multiples of this."""
        return self._description.strides[-1]

    @property
    def description(self) -> Described:
        """What this network was built from, with the anchors of its head as they are now."""
        return self._description.with_anchors(self.detect.anchors.tolist())

    def set_anchors(self, anchors: Float[Tensor, "levels anchors 2"]) -> None:
        """Put other anchors, (width, height) in pixels, into the head.

        Raises `ValueError` where the shape differs or a side is not positive.
        """
        self.detect.set_anchors(anchors)

    def rename(self, names: list[str]) -> None:
        """Give the classes other names. Raises `ValueError` where their number differs."""
        if len(names) != self.detect.num_classes:
            raise ValueError(f"{len(names)} names for {self.detect.num_classes} classes")
        self._description = self._description.with_names(names)

    @property
    def deployed(self) -> bool:
        """Whether nothing is left to fold."""
        return not any(isinstance(module, Branches) for module in self.modules())

    def fuse(self) -> Self:
        """Every block, every convolution with its norm and the head become one convolution each, in place;
        returns the network.

        The same as `switch_to_deploy()`, under the name that YOLO's users know. Call `eval()` first.
        """
        self.switch_to_deploy()
        return self

    def maps(self, images: Float[Tensor, "n 3 h w"]) -> list[RawMap]:
        """The raw maps of each level, in either mode; `detect.decode` makes boxes of them."""
        return self.detect.raw(self.features(images))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[RawMap] | Float[Tensor, "n boxes values"]:
        """Raw maps in training mode, decoded boxes in eval mode."""
        return self.detect(self.features(images))
