"""YOLOv5: backbone, neck and head, built from a description."""

from typing import Unpack

from jaxtyping import Float
from torch import Tensor

from unbranch.models.yolo.head import Detect
from unbranch.models.yolo.network import YOLO
from unbranch.models.yolov5.backbones import ClassifierBackbone, CSPBackbone
from unbranch.models.yolov5.description import Departures, Description, describe
from unbranch.models.yolov5.layers import C3
from unbranch.models.yolov5.neck import Neck


class YOLOv5(YOLO[Description]):
    """An anchor-based detector of the layout of YOLOv5 release 6 and 7, its C3 blocks re-parameterizable.

    Images (N, 3, H, W) in 0..1, H and W multiples of the largest stride. In training mode it returns the raw
    maps of each level, (N, anchors, rows, columns, 5 + classes) logits; in eval mode the decoded predictions
    (N, total, 5 + classes): x, y, w, h in pixels, objectness and class probabilities.

    `names` are the classes; `description` is what it was built from, with the anchors that it has now.

    >>> yolov5("yolov5n", num_classes=3).eval()(torch.ones(1, 3, 64, 96)).shape
    torch.Size([1, 378, 8])
    """

    def __init__(self, description: Description) -> None:
        super().__init__(description)
        d = description
        blocks = dict(zip(d.stage_names, d.blocks, strict=True))

        def stage(name: str, c_in: int, c_out: int, depth: int, residual: bool) -> C3:
            return C3(c_in, c_out, depth, blocks[name], d.bottleneck, residual, d.activation)

        channels = d.channels[2:]
        if d.backbone == "csp":
            self.backbone = CSPBackbone(
                d.channels, d.depths, lambda name, i, o, depth: stage(name, i, o, depth, True), d.activation
            )
        else:
            self.backbone = ClassifierBackbone(d.backbone, d.strides, channels[-1], d.activation)
        self.neck = Neck(
            self.backbone.feature_channels,
            channels,
            lambda name, i, o: stage(name, i, o, d.neck_depth, False),
            d.activation,
        )
        self.detect = Detect(channels, d.anchors, d.strides, d.num_classes)

    def features(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        """The neck's maps of each level, fine to coarse."""
        return self.neck(self.backbone(images))


def yolov5(network: str | Description = "yolov5n", **options: Unpack[Departures]) -> YOLOv5:
    """A YOLOv5 by name or description, freshly initialised; options are those of `describe`.

    Raises `ValueError` naming the option and the value.

    >>> yolov5("yolov5n", num_classes=2, block="repvgg", bottleneck="3x3-3x3").names
    ['class0', 'class1']
    """
    if isinstance(network, Description):
        if options:
            raise ValueError(
                f"options {', '.join(options)} beside a description; put them into the description"
            )
        return YOLOv5(network)
    return YOLOv5(describe(network, **options))
