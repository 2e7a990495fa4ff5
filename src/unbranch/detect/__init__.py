"""Detection: data, training, validation, prediction and export of YOLOv5 and YOLOv7 networks.

The names below are imported when they are first asked for: training pulls in Lightning, prediction does not.
"""

import importlib
from typing import TYPE_CHECKING, Any

from unbranch.detect.errors import InputError

if TYPE_CHECKING:
    from unbranch.detect.checkpoint import load_backbone, load_model, save
    from unbranch.detect.evaluation import Validation, validate
    from unbranch.detect.exporting import Plan, export
    from unbranch.detect.nms import Limits
    from unbranch.detect.originals import import_original
    from unbranch.detect.predict import Detector
    from unbranch.detect.recipe import Recipe
    from unbranch.detect.running import detect
    from unbranch.detect.training import Settings, TrainResult, train

__all__ = [
    "Detector",
    "InputError",
    "Limits",
    "Plan",
    "Recipe",
    "Settings",
    "TrainResult",
    "Validation",
    "detect",
    "export",
    "import_original",
    "load_backbone",
    "load_model",
    "save",
    "train",
    "validate",
]

_HOMES = {
    "Detector": "predict",
    "Limits": "nms",
    "Plan": "exporting",
    "Recipe": "recipe",
    "Settings": "training",
    "TrainResult": "training",
    "Validation": "evaluation",
    "detect": "running",
    "export": "exporting",
    "import_original": "originals",
    "load_backbone": "checkpoint",
    "load_model": "checkpoint",
    "save": "checkpoint",
    "train": "training",
    "validate": "evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
