"""The numbers of a training: YOLOv5's published recipe for light augmentation, and what is ours named so."""

from dataclasses import dataclass, fields
from typing import Literal

from unbranch.detect.errors import InputError

OptimizerName = Literal["auto", "sgd", "adamw"]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters. Fractions unless a unit is named; gains are for 80 classes, 3 levels and 640 pixels.

    Source: the low-augmentation settings published with YOLOv5 (release 6). Ours: `optimizer="auto"`
    (`schedule.choose_optimizer`) and `mosaic_off`, the share of the epochs, at the end, that see whole
    pictures.

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
        return cls(**values)  # pyright: ignore[reportArgumentType]
