"""YOLOv7's family, with blocks and heads that fold."""

from unbranch.models.yolo.families import Family, register
from unbranch.models.yolov7.description import Description, describe
from unbranch.models.yolov7.head import IAuxDetect, IDetect
from unbranch.models.yolov7.layers import ELAN, SPPCSPC, Join, Shrink
from unbranch.models.yolov7.network import YOLOv7, yolov7
from unbranch.models.yolov7.networks import NETWORKS
from unbranch.models.yolov7.plan import Layer

__all__ = [
    "ELAN",
    "SPPCSPC",
    "Description",
    "IAuxDetect",
    "IDetect",
    "Join",
    "Layer",
    "Shrink",
    "YOLOv7",
    "describe",
    "yolov7",
]

register(Family("yolov7", tuple(NETWORKS), Description.from_dict, yolov7))
