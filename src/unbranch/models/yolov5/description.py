"""What a YOLOv5 is built from: plain data that is checked and never evaluated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeAlias

from unbranch.blocks.activation import ACTIVATIONS
from unbranch.models.yolov5.recipes import BlockChoice, check_block

Levels: TypeAlias = tuple[tuple[tuple[float, float], ...], ...]

BOTTLENECKS = ("1x1-3x3", "3x3-3x3")
FIRST_STRIDE = 8

_SIZES = {"n": (0.33, 0.25), "s": (0.33, 0.50), "m": (0.67, 0.75), "l": (1.0, 1.0), "x": (1.33, 1.25)}
_THREE_LEVELS = ((64, 128, 256, 512, 1024), (3, 6, 9, 3))
_FOUR_LEVELS = ((64, 128, 256, 512, 768, 1024), (3, 6, 9, 3, 3))
_NECK_DEPTH = 3
_ANCHORS_THREE: Levels = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
_ANCHORS_FOUR: Levels = (
    ((19, 27), (44, 40), (38, 94)),
    ((96, 68), (86, 152), (180, 137)),
    ((140, 301), (303, 264), (238, 542)),
    ((436, 615), (739, 380), (925, 792)),
)


@dataclass(frozen=True)
class Description:
    """A YOLOv5, completely: two equal descriptions build networks with equal parameters' names and shapes.

    channels: of the stem and of each backbone stage; depths: bottlenecks in the C3 of each stage; neck_depth: in each C3
    of the neck. anchors: for each level (stride 8, 16, 32, …) the (width, height) in pixels. blocks: for each C3 in
    running order, see `stage_names`. backbone: `"csp"`, or the name of a classification network in `unbranch.models`.

    Raises `ValueError` naming the field and the value.

    >>> describe("yolov5n", num_classes=3).channels
    (16, 32, 64, 128, 256)
    """

    network: str
    names: tuple[str, ...]
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    neck_depth: int
    anchors: Levels
    blocks: tuple[BlockChoice, ...]
    bottleneck: str = BOTTLENECKS[0]
    activation: str = "silu"
    backbone: str = "csp"

    def __post_init__(self) -> None:
        levels = len(self.anchors)
        _require(levels in (3, 4), f"anchors: {levels} levels; 3 (strides 8, 16, 32) or 4 (and 64)")
        _require(len(self.names) > 0, "names: at least one class is needed")
        _require(all(self.names), f"names: class {_first_empty(self.names)} has an empty name")
        _require(
            len(self.channels) == levels + 2 and min(self.channels) > 0,
            f"channels: {self.channels}; {levels} levels need {levels + 2} positive numbers",
        )
        _require(
            len(self.depths) == levels + 1 and min(self.depths) > 0 and self.neck_depth > 0,
            f"depths: {self.depths}, neck_depth: {self.neck_depth}; {levels} levels need {levels + 1} positive numbers",
        )
        anchors = [pair for level in self.anchors for pair in level]
        same_count = len({len(level) for level in self.anchors}) == 1
        _require(
            same_count and len(anchors) > 0 and all(len(pair) == 2 and min(pair) > 0 for pair in anchors),
            "anchors: each level needs the same number of (width, height) pairs, in pixels, all positive",
        )
        _require(self.bottleneck in BOTTLENECKS, f"bottleneck: {self.bottleneck!r}; one of {', '.join(BOTTLENECKS)}")
        _require(
            self.activation in ACTIVATIONS, f"activation: {self.activation!r}; one of {', '.join(ACTIVATIONS)}"
        )
        stages = self.stage_names
        _require(len(self.blocks) == len(stages), f"blocks: {len(self.blocks)} given for the stages {', '.join(stages)}")
        for stage, block in zip(stages, self.blocks, strict=True):
            check_block(block, stage)

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the picture in a cell, for each level: 8, 16, 32 (, 64)."""
        return tuple(FIRST_STRIDE << level for level in range(len(self.anchors)))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The C3 stages in running order: `stage1` … of our own backbone, then `neck1` …"""
        return stage_names(len(self.anchors), self.backbone)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and text, for JSON or YAML; `from_dict` reads it back."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        del plain["blocks"]
        blocks = {stage: block.to_plain() for stage, block in zip(self.stage_names, self.blocks, strict=True)}
        return {
            **plain,
            "names": list(self.names),
            "channels": list(self.channels),
            "depths": list(self.depths),
            "anchors": [[list(pair) for pair in level] for level in self.anchors],
            "block": blocks,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The description that a mapping holds: `network` (a name such as yolov5s) and whatever departs from it.

        Raises `ValueError` for unknown keys and for values of the wrong kind.

        >>> Description.from_dict({"network": "yolov5s", "names": ["cell"], "block": {"stage4": "repvgg"}}).num_classes
        1
        """
        known = [f.name for f in fields(cls) if f.name != "blocks"] + ["block", "num_classes", "shortcut"]
        unknown = [str(key) for key in plain if key not in known]
        _require(not unknown, f"unknown key {', '.join(unknown)}; known are {', '.join(known)}")
        options = {key: value for key, value in plain.items() if key != "network"}
        return describe(plain.get("network", "yolov5n"), **options)  # pyright: ignore[reportReturnType]

    def with_anchors(self, anchors: Sequence[Sequence[Sequence[float]]]) -> Self:
        return replace(self, anchors=_levels(anchors))


def stage_names(levels: int, backbone: str) -> tuple[str, ...]:
    """The C3 stages of a network with that many levels; a classification backbone has none of its own."""
    own = [f"stage{i}" for i in range(1, levels + 2)] if backbone == "csp" else []
    return (*own, *(f"neck{i}" for i in range(1, 2 * levels - 1)))


def describe(
    network: str = "yolov5n",
    *,
    num_classes: int | None = None,
    names: Sequence[str] | Mapping[int, str] | None = None,
    anchors: Sequence[Sequence[Sequence[float]]] | None = None,
    block: Any = "plain",
    shortcut: str | None = None,
    bottleneck: str = BOTTLENECKS[0],
    activation: str = "silu",
    backbone: str = "csp",
    channels: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    neck_depth: int | None = None,
) -> Description:
    """The description of a network by name, `yolov5` + n, s, m, l or x (+ 6 for four levels), and what departs from it.

    block: a kind (`"plain"`, `"repvgg"`, `"mobileone"`, …), a mapping `{"kind": …, option: value}`, or a mapping from stage
    names to those, `"default"` included. shortcut: the shortcut of every re-parameterizable block that names none itself.

    Raises `ValueError` naming the argument and the value.

    >>> describe("yolov5s6", block={"default": "plain", "neck1": {"kind": "repvgg", "shortcut": None}}).strides
    (8, 16, 32, 64)
    """
    depth, width, (base_channels, base_depths), base_anchors = _scaling(network)
    classes = _class_names(names, num_classes)
    levels = _levels(base_anchors if anchors is None else anchors)
    _require(isinstance(backbone, str) and bool(backbone), f"backbone: {backbone!r} is not a name")
    stages = stage_names(len(levels), backbone)
    scaled = tuple(-(-int(c * width) // 8) * 8 for c in base_channels)
    return Description(
        network=network,
        names=classes,
        channels=scaled if channels is None else _counts("channels", channels),
        depths=tuple(_scaled_depth(n, depth) for n in base_depths) if depths is None else _counts("depths", depths),
        neck_depth=_scaled_depth(_NECK_DEPTH, depth) if neck_depth is None else _counts("neck_depth", [neck_depth])[0],
        anchors=levels,
        blocks=tuple(choice.with_shortcut(shortcut) for choice in _choices(block, stages)),
        bottleneck=bottleneck,
        activation=activation,
        backbone=backbone,
    )


def _scaling(network: str) -> tuple[float, float, tuple[tuple[int, ...], tuple[int, ...]], Levels]:
    letter = network.removeprefix("yolov5") if isinstance(network, str) else ""
    four = letter.endswith("6")
    size = letter.removesuffix("6")
    _require(
        isinstance(network, str) and network.startswith("yolov5") and size in _SIZES,
        f"network: {network!r}; known are {', '.join(f'yolov5{s}' for s in _SIZES)}, each also with a 6 behind it",
    )
    layout = _FOUR_LEVELS if four else _THREE_LEVELS
    return *_SIZES[size], layout, _ANCHORS_FOUR if four else _ANCHORS_THREE


def _scaled_depth(count: int, factor: float) -> int:
    return max(round(count * factor), 1)


def _class_names(names: Sequence[str] | Mapping[int, str] | None, num_classes: int | None) -> tuple[str, ...]:
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise ValueError(f"num_classes: {num_classes!r}; a positive number is needed")
    if names is None:
        return tuple(f"class{i}" for i in range(80 if num_classes is None else num_classes))
    if isinstance(names, Mapping):
        _require(
            sorted(names) == list(range(len(names))), f"names: the classes {sorted(names)} are not 0 to {len(names) - 1}"
        )
        names = [names[i] for i in range(len(names))]
    _require(not isinstance(names, str), f"names: {names!r} is one text; a list of names is needed")
    listed = tuple(str(name) for name in names)
    _require(
        num_classes is None or num_classes == len(listed),
        f"num_classes: {num_classes}, but {len(listed)} names are given",
    )
    return listed


def _levels(anchors: Sequence[Sequence[Sequence[float]]]) -> Levels:
    """Pairs, or YOLO's flat rows `[w, h, w, h, …]`, as pairs."""
    return tuple(tuple(_pairs(level)) for level in anchors)


def _pairs(level: Sequence[Any]) -> list[tuple[float, float]]:
    flat = [n for pair in level for n in pair] if all(isinstance(p, Sequence) for p in level) else list(level)
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in flat)
    _require(numbers and len(flat) % 2 == 0, f"anchors: {list(level)!r} is no list of (width, height) pairs")
    return list(zip(flat[::2], flat[1::2], strict=True))


def _counts(name: str, values: Sequence[int]) -> tuple[int, ...]:
    _require(
        not isinstance(values, str) and all(type(value) is int for value in values), f"{name}: {values!r}; whole numbers"
    )
    return tuple(values)


def _choices(block: Any, stages: tuple[str, ...]) -> list[BlockChoice]:
    per_stage = isinstance(block, Mapping) and "kind" not in block
    if not per_stage:
        return [BlockChoice.from_plain(block)] * len(stages)
    unknown = [str(key) for key in block if key != "default" and key not in stages]
    _require(not unknown, f"block: no stage {', '.join(unknown)}; there are default, {', '.join(stages)}")
    default = block.get("default", "plain")
    return [BlockChoice.from_plain(block.get(stage, default)) for stage in stages]


def _first_empty(names: Sequence[str]) -> int:
    return next((i for i, name in enumerate(names) if not name), -1)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
