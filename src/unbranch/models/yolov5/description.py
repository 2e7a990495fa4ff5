"""What a YOLOv5 is built from: plain data that is checked and never evaluated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Unpack

from unbranch.models.yolo.data import (
    ANCHORS_FOUR,
    ANCHORS_THREE,
    COMMON_KINDS,
    CommonDepartures,
    Kinds,
    Levels,
    YOLODescription,
    check_activation,
    check_options,
    choices,
    class_names,
    is_count,
    is_list_of,
    is_text,
    levels_of,
    read_plain,
    require,
)
from unbranch.models.yolo.recipes import PLAIN, BlockChoice, check_block

BOTTLENECKS = ("1x1-3x3", "3x3-3x3")

_SIZES = {"n": (0.33, 0.25), "s": (0.33, 0.50), "m": (0.67, 0.75), "l": (1.0, 1.0), "x": (1.33, 1.25)}
NETWORKS = tuple(f"yolov5{size}{levels}" for levels in ("", "6") for size in _SIZES)
_THREE_LEVELS = ((64, 128, 256, 512, 1024), (3, 6, 9, 3))
_FOUR_LEVELS = ((64, 128, 256, 512, 768, 1024), (3, 6, 9, 3, 3))
_NECK_DEPTH = 3


@dataclass(frozen=True)
class Description(YOLODescription):
    """A YOLOv5, completely: two equal descriptions build networks with equal parameters' names and shapes.

    channels: of the stem and of each backbone stage; depths: bottlenecks in the C3 of each stage; neck_depth:
    in each C3 of the neck. anchors: for each level (stride 8, 16, 32, …) the (width, height) in pixels.
    blocks: for each C3 in running order, see `stage_names`. backbone: `"csp"`, or the name of a
    classification network in `unbranch.models`.

    Raises `ValueError` naming the field and the value.

    >>> describe("yolov5n", num_classes=3).channels
    (16, 32, 64, 128, 256)
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    neck_depth: int
    blocks: tuple[BlockChoice, ...]
    bottleneck: str = BOTTLENECKS[0]
    activation: str = "silu"
    backbone: str = "csp"

    def __post_init__(self) -> None:
        self.check()
        levels = len(self.anchors)
        require(
            len(self.channels) == levels + 2 and min(self.channels) > 0,
            f"channels: {self.channels}; {levels} levels need {levels + 2} positive numbers",
        )
        require(
            len(self.depths) == levels + 1 and min(self.depths) > 0 and self.neck_depth > 0,
            f"depths: {self.depths}, neck_depth: {self.neck_depth}; {levels} levels need {levels + 1}, "
            "each and the neck's positive",
        )
        require(
            self.bottleneck in BOTTLENECKS,
            f"bottleneck: {self.bottleneck!r}; one of {', '.join(BOTTLENECKS)}",
        )
        check_activation(self.activation)
        stages = self.stage_names
        require(
            len(self.blocks) == len(stages),
            f"blocks: {len(self.blocks)} given for the stages {', '.join(stages)}",
        )
        for stage, block in zip(stages, self.blocks, strict=True):
            check_block(block, stage)

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
        return describe(**read_plain(plain, _KINDS))


def stage_names(levels: int, backbone: str) -> tuple[str, ...]:
    """The C3 stages of a network with that many levels; a classification backbone has none of its own."""
    own = [f"stage{i}" for i in range(1, levels + 2)] if backbone == "csp" else []
    return (*own, *(f"neck{i}" for i in range(1, 2 * levels - 1)))


class Departures(CommonDepartures, total=False):
    """What a network may have other than its name says."""

    bottleneck: str
    """`"1x1-3x3"` or `"3x3-3x3"`."""
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
    check_options(departures, Departures)
    depth, width, (base_channels, base_depths), base_anchors = _scaling(network)
    levels = levels_of(departures.get("anchors", base_anchors))
    backbone = departures.get("backbone", "csp")
    scaled_channels = [-(-int(c * width) // 8) * 8 for c in base_channels]
    scaled_depths = [_scaled_depth(n, depth) for n in base_depths]
    return Description(
        network=network,
        names=class_names(departures),
        channels=tuple(departures.get("channels", scaled_channels)),
        depths=tuple(departures.get("depths", scaled_depths)),
        neck_depth=departures.get("neck_depth", _scaled_depth(_NECK_DEPTH, depth)),
        anchors=levels,
        blocks=choices(
            departures.get("block"),
            dict.fromkeys(stage_names(len(levels), backbone), PLAIN),
            departures.get("shortcut"),
        ),
        bottleneck=departures.get("bottleneck", BOTTLENECKS[0]),
        activation=departures.get("activation", "silu"),
        backbone=backbone,
    )


def _scaling(network: str) -> tuple[float, float, tuple[tuple[int, ...], tuple[int, ...]], Levels]:
    letter = network.removeprefix("yolov5")
    four = letter.endswith("6")
    size = letter.removesuffix("6")
    require(
        network.startswith("yolov5") and size in _SIZES,
        f"network: {network!r}; known are {', '.join(f'yolov5{s}' for s in _SIZES)}, also with a 6 behind",
    )
    layout = _FOUR_LEVELS if four else _THREE_LEVELS
    return *_SIZES[size], layout, ANCHORS_FOUR if four else ANCHORS_THREE


def _scaled_depth(count: int, factor: float) -> int:
    return max(round(count * factor), 1)


_KINDS: Kinds = {
    **COMMON_KINDS,
    "bottleneck": (is_text, "a shape"),
    "backbone": (is_text, "a name"),
    "channels": (is_list_of(is_count), "a list of whole numbers"),
    "depths": (is_list_of(is_count), "a list of whole numbers"),
    "neck_depth": (is_count, "a whole number"),
}
"""What plain data may hold under each key, and how to say it."""
