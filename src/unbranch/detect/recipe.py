"""The numbers of a training: YOLOv5's published recipe for light augmentation, and what is ours named so."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

from unbranch.detect.errors import InputError

OptimizerName = Literal["auto", "sgd", "adamw"]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters. Fractions unless a unit is named; gains are for 80 classes, 3 levels and 640 pixels.

    Source: the low-augmentation settings published with YOLOv5 (release 6). Ours: `optimizer="auto"`
    (`schedule.choose_optimizer`), `mosaic_off`, the share of the epochs, at the end, that see whole
    pictures, and `branch_lr`, what the rate of branches that `expand` added is multiplied with.

    Raises InputError for a value outside its range.

    Example:
        >>> Recipe(mosaic=0.0).box
        0.05
    """

    optimizer: OptimizerName = "auto"
    lr: float | None = None
    final_lr: float = 0.01
    momentum: float = 0.937
    weight_decay: float = 5e-4
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    branch_lr: float = 1.0
    nominal_batch: int | None = None
    clip: float = 10.0
    ema_decay: float = 0.9999
    ema_ramp: float = 2000.0

    box: float = 0.05
    objectness: float = 1.0
    classes: float = 0.5
    balance: tuple[float, ...] | None = None
    anchor_threshold: float = 4.0

    hue: float = 0.015
    saturation: float = 0.7
    value: float = 0.4
    translate: float = 0.1
    scale: float = 0.5
    flip_horizontal: float = 0.5
    flip_vertical: float = 0.0
    mosaic: float = 1.0
    mosaic_off: float = 0.2
    multi_scale: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _check_kinds(vars(self))
        for name in ("hue", "saturation", "value", "translate", "scale", "flip_horizontal", "flip_vertical",
                     "mosaic", "mosaic_off", "multi_scale", "final_lr", "momentum", "ema_decay"):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"recipe: {name} is {getattr(self, name)}; give a fraction in 0..1")
        if self.scale >= 1:
            raise InputError(
                f"recipe: scale is {self.scale}; give less than 1, or a picture may shrink to nothing"
            )
        if self.anchor_threshold <= 1:
            raise InputError(f"recipe: anchor_threshold is {self.anchor_threshold}; give a ratio above 1")

    @classmethod
    def from_mapping(cls, values: dict[str, object]) -> "Recipe":
        """A recipe with some values changed. Raises InputError for a name that it does not have."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(f"recipe: no setting '{name}'; there are {', '.join(known)}")
        balance = values.get("balance")
        if isinstance(balance, list):
            values = {**values, "balance": tuple(balance)}
        _check_kinds(values)
        return cls(**values)  # pyright: ignore[reportArgumentType]


def _check_kinds(values: Mapping[str, object]) -> None:
    """Refuse what is no number, none below zero and none where something is divided by it."""
    for name, value in values.items():
        if name == "optimizer":
            if value not in get_args(OptimizerName):
                known = ", ".join(get_args(OptimizerName))
                raise InputError(f"recipe: optimizer is {value!r}; it can be {known}")
        elif value is not None or name not in ("lr", "nominal_batch", "balance"):
            numbers = value if name == "balance" and isinstance(value, tuple) else (value,)
            if not all(_is_size(number) for number in numbers):
                kind = "numbers" if name == "balance" else "a number"
                raise InputError(f"recipe: {name} is {value!r}; give {kind}, 0 or more")
        if name in ("nominal_batch", "ema_ramp") and value == 0:
            raise InputError(f"recipe: {name} is 0; give more")


def _is_size(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
