"""The algebra of convolutions: pure tensor maths, no modules and no graphs."""

from unbranch.affine.algebra import (
    add,
    add_up,
    compose,
    concat,
    regroup,
    scale,
    select,
    select_geometry,
    shift,
)
from unbranch.affine.geometry import (
    PADDING_MODES,
    Geometry,
    NotLinear,
    add_geometry,
    compose_geometry,
    identity_geometry,
)
from unbranch.affine.value import Affine, apply
from unbranch.affine.work import ELEMENT, cost, multiply_adds

__all__ = [
    "ELEMENT",
    "PADDING_MODES",
    "Affine",
    "Geometry",
    "NotLinear",
    "add",
    "add_geometry",
    "add_up",
    "apply",
    "compose",
    "compose_geometry",
    "concat",
    "cost",
    "identity_geometry",
    "multiply_adds",
    "regroup",
    "scale",
    "select",
    "select_geometry",
    "shift",
]
