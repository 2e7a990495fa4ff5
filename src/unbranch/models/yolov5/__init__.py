"""YOLOv5, release 6 and 7, with blocks that fold."""

from unbranch.models.yolo.families import Family, register
from unbranch.models.yolo.head import Detect
from unbranch.models.yolo.recipes import BlockChoice, Conv
from unbranch.models.yolov5.description import NETWORKS, Description, describe
from unbranch.models.yolov5.layers import C3, SPPF, Bottleneck
from unbranch.models.yolov5.network import YOLOv5, yolov5

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

register(Family("yolov5", NETWORKS, Description.from_dict, yolov5))
