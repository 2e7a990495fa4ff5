"""Detection: data, training, validation, prediction and export of YOLOv5 networks.

The names below are imported when they are first asked for: training pulls in Lightning, prediction does not.
"""

import importlib
from typing import TYPE_CHECKING, Any

from unbranch.detect.errors import InputError

if TYPE_CHECKING:
    from unbranch.detect.digits import demo
    from unbranch.detect.evaluation import Validation, validate
    from unbranch.detect.predict import Detector
    from unbranch.detect.recipe import Recipe
    from unbranch.detect.training import Settings, TrainResult, train

__all__ = [
    "Detector",
    "InputError",
    "Recipe",
    "Settings",
    "TrainResult",
    "Validation",
    "demo",
    "train",
    "validate",
]

_HOMES = {
    "Detector": "predict",
    "Recipe": "recipe",
    "Settings": "training",
    "TrainResult": "training",
    "Validation": "evaluation",
    "demo": "digits",
    "train": "training",
    "validate": "evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
