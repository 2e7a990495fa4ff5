"""What a YOLOv5 is built from: plain data that is checked and never evaluated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias, TypedDict, Unpack

from unbranch.blocks.activation import ACTIVATIONS
from unbranch.models.yolov5.recipes import PLAIN, BlockChoice, check_block

Levels: TypeAlias = tuple[tuple[tuple[float, float], ...], ...]
Number: TypeAlias = int | float  # the run-time check takes an int for no float
AnchorLists: TypeAlias = Sequence[Sequence[Sequence[Number]]]

BOTTLENECKS = ("1x1-3x3", "3x3-3x3")
FIRST_STRIDE = 8

_SIZES = {"n": (0.33, 0.25), "s": (0.33, 0.50), "m": (0.67, 0.75), "l": (1.0, 1.0), "x": (1.33, 1.25)}
_THREE_LEVELS = ((64, 128, 256, 512, 1024), (3, 6, 9, 3))
_FOUR_LEVELS = ((64, 128, 256, 512, 768, 1024), (3, 6, 9, 3, 3))
_NECK_DEPTH = 3
_ANCHORS_THREE: Levels = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)
_ANCHORS_FOUR: Levels = (
    ((19.0, 27.0), (44.0, 40.0), (38.0, 94.0)),
    ((96.0, 68.0), (86.0, 152.0), (180.0, 137.0)),
    ((140.0, 301.0), (303.0, 264.0), (238.0, 542.0)),
    ((436.0, 615.0), (739.0, 380.0), (925.0, 792.0)),
)


@dataclass(frozen=True)
class Description:
    """A YOLOv5, completely: two equal descriptions build networks with equal parameters' names and shapes.

    channels: of the stem and of each backbone stage; depths: bottlenecks in the C3 of each stage; neck_depth:
    in each C3 of the neck. anchors: for each level (stride 8, 16, 32, …) the (width, height) in pixels.
    blocks: for each C3 in running order, see `stage_names`. backbone: `"csp"`, or the name of a
    classification network in `unbranch.models`.

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
        _require(all(self.names), f"names: {self.names}; no class may have an empty name")
        _require(
            len(self.channels) == levels + 2 and min(self.channels) > 0,
            f"channels: {self.channels}; {levels} levels need {levels + 2} positive numbers",
        )
        _require(
            len(self.depths) == levels + 1 and min(self.depths) > 0 and self.neck_depth > 0,
            f"depths: {self.depths}, neck_depth: {self.neck_depth}; {levels} levels need {levels + 1}, "
            "each and the neck's positive",
        )
        anchors = [pair for level in self.anchors for pair in level]
        same_count = len({len(level) for level in self.anchors}) == 1
        _require(
            same_count and len(anchors) > 0 and all(len(pair) == 2 and min(pair) > 0 for pair in anchors),
            "anchors: each level needs the same number of (width, height) pairs, in pixels, all positive",
        )
        _require(
            self.bottleneck in BOTTLENECKS,
            f"bottleneck: {self.bottleneck!r}; one of {', '.join(BOTTLENECKS)}",
        )
        _require(
            self.activation in ACTIVATIONS,
            f"activation: {self.activation!r}; one of {', '.join(ACTIVATIONS)}",
        )
        stages = self.stage_names
        _require(
            len(self.blocks) == len(stages),
            f"blocks: {len(self.blocks)} given for the stages {', '.join(stages)}",
        )
        for stage, block in zip(stages, self.blocks, strict=True):
            check_block(block, stage)

    @property
    def num_classes(self) -> int:
        """How many classes have a name."""
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
    def from_dict(cls, plain: Mapping[str, Any]) -> "Description":
        """The description that plain data hold: `network` (a name such as yolov5s) and what departs from it.

        Keys are the arguments of `describe`. Raises `ValueError` for unknown keys and values of another kind.

        >>> Description.from_dict({"network": "yolov5s", "names": ["cell"], "activation": "relu"}).channels
        (32, 64, 128, 256, 512)
        """
        unknown = [str(key) for key in plain if key not in _KINDS]
        _require(not unknown, f"unknown key {', '.join(unknown)}; known are {', '.join(_KINDS)}")
        for key, value in plain.items():
            fits, wanted = _KINDS[key]
            _require(value is None or fits(value), f"{key}: {value!r}; {wanted} is needed")
        given = {key: value for key, value in plain.items() if value is not None}
        if "names" in given and isinstance(given["names"], Mapping):
            given["names"] = _in_order(given["names"])
        if "anchors" in given:
            given["anchors"] = [_pairs(level) for level in given["anchors"]]
        return describe(**given)

    def with_anchors(self, anchors: AnchorLists) -> "Description":
        """The same with other anchors, (width, height) in pixels for each level."""
        return replace(self, anchors=_levels(anchors))


def stage_names(levels: int, backbone: str) -> tuple[str, ...]:
    """The C3 stages of a network with that many levels; a classification backbone has none of its own."""
    own = [f"stage{i}" for i in range(1, levels + 2)] if backbone == "csp" else []
    return (*own, *(f"neck{i}" for i in range(1, 2 * levels - 1)))


class Departures(TypedDict, total=False):
    """What a network may have other than its name says."""

    num_classes: int
    """80 where there are no names either."""
    names: Sequence[str]
    """Of the classes, in the order of their indices; `class0`, … where they are not given."""
    anchors: AnchorLists
    """For each level, fine to coarse, (width, height) in pixels: 3 or 4 levels."""
    block: str | Mapping[str, Any]
    """A kind, a mapping `{"kind": …, option: value}`, or one from stage names (or `default`) to those."""
    shortcut: str
    """The shortcut of every re-parameterizable block that names none itself."""
    bottleneck: str
    """`"1x1-3x3"` or `"3x3-3x3"`."""
    activation: str
    """A name that `unbranch.blocks` knows."""
    backbone: str
    """`"csp"`, or a classification network by name."""
    channels: Sequence[int]
    """Of the stem and each stage, as they are: no width is multiplied in."""
    depths: Sequence[int]
    """Bottlenecks in the C3 of each stage."""
    neck_depth: int
    """Bottlenecks in each C3 of the neck."""


def describe(network: str = "yolov5n", **departures: Unpack[Departures]) -> Description:
    """The description of a network by name, yolov5 + n, s, m, l or x (+ 6: four levels), and what departs
    from it.

    Raises `ValueError` naming the argument and the value.

    >>> describe("yolov5s6", block={"default": "plain", "neck1": {"kind": "repvgg", "se": 0.25}}).strides
    (8, 16, 32, 64)
    """
    unknown = [key for key in departures if key not in Departures.__annotations__]
    _require(
        not unknown, f"unknown option {', '.join(unknown)}; known are {', '.join(Departures.__annotations__)}"
    )
    depth, width, (base_channels, base_depths), base_anchors = _scaling(network)
    levels = _levels(departures.get("anchors", base_anchors))
    backbone = departures.get("backbone", "csp")
    stages = stage_names(len(levels), backbone)
    scaled_channels = [-(-int(c * width) // 8) * 8 for c in base_channels]
    scaled_depths = [_scaled_depth(n, depth) for n in base_depths]
    choices = _choices(departures.get("block", "plain"), stages)
    return Description(
        network=network,
        names=_class_names(departures),
        channels=tuple(departures.get("channels", scaled_channels)),
        depths=tuple(departures.get("depths", scaled_depths)),
        neck_depth=departures.get("neck_depth", _scaled_depth(_NECK_DEPTH, depth)),
        anchors=levels,
        blocks=tuple(choice.with_shortcut(departures.get("shortcut")) for choice in choices),
        bottleneck=departures.get("bottleneck", BOTTLENECKS[0]),
        activation=departures.get("activation", "silu"),
        backbone=backbone,
    )


def _scaling(network: str) -> tuple[float, float, tuple[tuple[int, ...], tuple[int, ...]], Levels]:
    letter = network.removeprefix("yolov5")
    four = letter.endswith("6")
    size = letter.removesuffix("6")
    _require(
        network.startswith("yolov5") and size in _SIZES,
        f"network: {network!r}; known are {', '.join(f'yolov5{s}' for s in _SIZES)}, also with a 6 behind",
    )
    layout = _FOUR_LEVELS if four else _THREE_LEVELS
    return *_SIZES[size], layout, _ANCHORS_FOUR if four else _ANCHORS_THREE


def _scaled_depth(count: int, factor: float) -> int:
    return max(round(count * factor), 1)


def _class_names(departures: Departures) -> tuple[str, ...]:
    count = departures.get("num_classes")
    names = departures.get("names")
    _require(count is None or count > 0, f"num_classes: {count}; a positive number is needed")
    if names is None:
        return tuple(f"class{i}" for i in range(80 if count is None else count))
    _require(not isinstance(names, str), f"names: {names!r} is one text; a list of names is needed")
    _require(count in (None, len(names)), f"num_classes: {count}, but {len(names)} names are given")
    return tuple(names)


def _in_order(names: Mapping[Any, str]) -> list[str]:
    """Names from YOLO's mapping `{0: …, 1: …}`."""
    indices = {int(key): name for key, name in names.items() if str(key).isdigit()}
    _require(
        sorted(indices) == list(range(len(names))),
        f"names: the classes {list(names)} are not 0 to {len(names) - 1}",
    )
    return [indices[i] for i in range(len(indices))]


def _levels(anchors: AnchorLists) -> Levels:
    for level in anchors:
        _require(
            all(len(pair) == 2 for pair in level), f"anchors: {level!r}; (width, height) pairs are needed"
        )
    return tuple(tuple((float(pair[0]), float(pair[1])) for pair in level) for level in anchors)


def _pairs(level: Sequence[Any]) -> list[Sequence[Number]]:
    """Pairs as they are; YOLO's flat rows `[w, h, w, h, …]` as pairs."""
    if not all(_is_number(value) for value in level):
        return list(level)
    _require(len(level) % 2 == 0, f"anchors: {list(level)!r} has a width without a height")
    return list(zip(level[::2], level[1::2], strict=True))


def _choices(block: str | Mapping[str, Any], stages: tuple[str, ...]) -> list[BlockChoice]:
    if isinstance(block, str) or "kind" in block:
        return [BlockChoice.from_plain(block)] * len(stages)
    unknown = [str(key) for key in block if key != "default" and key not in stages]
    _require(not unknown, f"block: no stage {', '.join(unknown)}; there are default, {', '.join(stages)}")
    default = block.get("default", PLAIN.kind)
    return [BlockChoice.from_plain(block.get(stage, default)) for stage in stages]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(fits(part) for part in value)


def _is_text_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value.values())


_is_anchor_row = _is_list_of(lambda part: _is_number(part) or _is_list_of(_is_number)(part))

_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "network": (_is_text, "a name"),
    "num_classes": (_is_count, "a whole number"),
    "names": (lambda value: _is_list_of(_is_text)(value) or _is_text_mapping(value), "a list of names"),
    "anchors": (_is_list_of(_is_anchor_row), "a list of (width, height) pairs for each level"),
    "block": (lambda value: isinstance(value, str | Mapping), "a kind, or a mapping"),
    "shortcut": (_is_text, "a kind of shortcut"),
    "bottleneck": (_is_text, "a shape"),
    "activation": (_is_text, "a name"),
    "backbone": (_is_text, "a name"),
    "channels": (_is_list_of(_is_count), "a list of whole numbers"),
    "depths": (_is_list_of(_is_count), "a list of whole numbers"),
    "neck_depth": (_is_count, "a whole number"),
}
"""What plain data may hold under each key, and how to say it."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
