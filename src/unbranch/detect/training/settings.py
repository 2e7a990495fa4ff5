"""What a training was asked to do: checked, written down first, and read again to resume."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from unbranch.detect.data.pictures import Kind
from unbranch.detect.errors import InputError
from unbranch.detect.files import replacing
from unbranch.detect.recipe import Recipe

Precision: TypeAlias = Literal["auto", "32", "16-mixed", "bf16-mixed"]

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class Settings:
    """The settings of `train`, beside data, network and folder.

    epochs; batch: pictures in a batch, over all devices; size: training size in pixels, a multiple of 32;
    seed: every random draw follows from it. network: options of `yolov5`, for example `{"block": "repvgg"}`;
    weights: a `.safetensors` of ours to start from, as far as its tensors fit. expand: a recipe of
    `unbranch.expand.RECIPES`, whose branches the weights' convolutions get before they learn on; where: a glob on
    the paths of those that do, all of more than one tap by default. precision: "auto" is mixed
    where the device computes faster so. accelerator, devices, nodes: as Lightning has them. workers:
    processes that make batches, 0 for none, "auto" for what suits the device. cache: where decoded pictures
    stay: "ram", "disk" (below `cache_folder`), "none", or "auto". patience: epochs without a better result
    after which training ends, 0 for never. validate_every: epochs between validations. freeze_norms: norms
    keep their statistics and are not trained. tensorboard: write its event files as well.

    Raises InputError for values out of range.

    Example:
        >>> Settings(epochs=12, size=320).batch
        16
    """

    epochs: int = 100
    batch: int = 16
    size: int = 640
    seed: int = 0
    network: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    expand: str | None = None
    where: str | None = None
    precision: Precision = "auto"
    accelerator: str = "auto"
    devices: int | str = "auto"
    nodes: int = 1
    workers: int | Literal["auto"] = "auto"
    cache: Kind = "auto"
    cache_folder: str | None = None
    patience: int = 50
    validate_every: int = 1
    freeze_norms: bool = False
    tensorboard: bool = False
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("epochs", "batch", "size", "nodes", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.size % 32:
            raise InputError(
                f"size is {self.size}; give a multiple of 32, such as {-(-self.size // 32) * 32}"
            )
        if self.workers != "auto" and self.workers < 0:
            raise InputError(f"workers is {self.workers}; give 0 or more, or 'auto'")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "Settings":
        """Settings out of named options; `recipe` may be a mapping. Raises InputError for unknown names."""
        known = [one.name for one in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                meant = f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}"
                raise InputError(f"train has no setting '{name}'{meant}")
        for name, allowed in (("precision", get_args(Precision)), ("cache", get_args(Kind))):
            if options.get(name, "auto") not in allowed:
                raise InputError(f"{name} is {options[name]!r}; it can be {', '.join(allowed)}")
        workers = options.get("workers", "auto")
        if workers != "auto" and not isinstance(workers, int):
            raise InputError(f"workers is {workers!r}; give a number, or 'auto'")
        recipe = options.get("recipe", Recipe())
        if isinstance(recipe, Mapping):
            recipe = Recipe.from_mapping(dict(recipe))
        return cls(**{**options, "recipe": recipe})


@dataclass(frozen=True)
class Job:
    """All that a training starts from: data, network (a name or a description), settings; as plain data in a
    file."""

    data: str | dict[str, Any]
    model: str | dict[str, Any]
    settings: Settings

    def write(self, folder: Path) -> None:
        """Write the job into its folder, whole or not at all."""
        text = json.dumps(
            {"data": self.data, "model": self.model, "settings": asdict(self.settings)}, indent=2
        )
        with replacing(folder / SETTINGS_FILE) as part:
            part.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """The job of a training that was begun in `folder`. Raises InputError where there is none."""
        file = folder / SETTINGS_FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return cls(content["data"], content["model"], Settings.from_options(content["settings"]))
        except FileNotFoundError as error:
            raise InputError(
                f"{folder} holds no training ({SETTINGS_FILE} is not there); name a training's folder"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} cannot be read ({error}); start the training anew") from error
