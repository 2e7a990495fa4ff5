"""The inverse of a fold: a plain convolution of a trained network becomes branches that compute the same function."""

from unbranch.expand.calibration import calibrate
from unbranch.expand.expanded import Expanded
from unbranch.expand.expansion import Expansion, expand, expand_, parameter_groups
from unbranch.expand.likeness import expand_like_, unchanged_on_error
from unbranch.expand.recipes import RECIPES

__all__ = [
    "RECIPES",
    "Expanded",
    "Expansion",
    "calibrate",
    "expand",
    "expand_",
    "expand_like_",
    "parameter_groups",
    "unchanged_on_error",
]
