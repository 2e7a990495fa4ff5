"""YOLOv5, release 6 and 7, with blocks that fold."""

from unbranch.models.yolov5.description import Description, describe
from unbranch.models.yolov5.head import Detect
from unbranch.models.yolov5.layers import C3, SPPF, Bottleneck
from unbranch.models.yolov5.network import YOLOv5, yolov5
from unbranch.models.yolov5.recipes import BlockChoice, Conv

__all__ = [
    "C3",
    "SPPF",
    "BlockChoice",
    "Bottleneck",
    "Conv",
    "Description",
    "Detect",
    "YOLOv5",
    "describe",
    "yolov5",
]
