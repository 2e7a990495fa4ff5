"""Networks as plain modules, by class and by name."""

from unbranch.models.backbone import Backbone
from unbranch.models.mobileone import MobileOne
from unbranch.models.registry import create, names, register
from unbranch.models.repvgg import RepVGG

__all__ = ["Backbone", "MobileOne", "RepVGG", "create", "names", "register"]
