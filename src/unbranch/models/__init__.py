"""Networks as plain modules, by class and by name."""

from unbranch.models.backbone import Backbone
from unbranch.models.mobileone import MobileOne
from unbranch.models.registry import create, names, register
from unbranch.models.repvgg import RepVGG
from unbranch.models.yolov5 import YOLOv5
from unbranch.models.yolov7 import YOLOv7

__all__ = ["Backbone", "MobileOne", "RepVGG", "YOLOv5", "YOLOv7", "create", "names", "register"]
