"""What the YOLOs share: blocks by name, descriptions as plain data, the head of anchors, families by name."""

from unbranch.models.yolo.data import YOLODescription
from unbranch.models.yolo.families import Family, build, describe, families, register
from unbranch.models.yolo.head import Detect
from unbranch.models.yolo.network import YOLO
from unbranch.models.yolo.recipes import BlockChoice, Conv

__all__ = [
    "YOLO",
    "BlockChoice",
    "Conv",
    "Detect",
    "Family",
    "YOLODescription",
    "build",
    "describe",
    "families",
    "register",
]
