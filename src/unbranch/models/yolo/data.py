"""What every YOLO of ours is described by: plain data that is checked and never evaluated."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias, TypedDict

from unbranch.blocks.activation import ACTIVATIONS
from unbranch.models.yolo.recipes import BlockChoice

Levels: TypeAlias = tuple[tuple[tuple[float, float], ...], ...]
Number: TypeAlias = int | float  # the run-time check takes an int for no float
AnchorLists: TypeAlias = Sequence[Sequence[Sequence[Number]]]
Kinds: TypeAlias = Mapping[str, tuple[Callable[[Any], bool], str]]

FIRST_STRIDE = 8
ANCHORS_THREE: Levels = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)
ANCHORS_FOUR: Levels = (
    ((19.0, 27.0), (44.0, 40.0), (38.0, 94.0)),
    ((96.0, 68.0), (86.0, 152.0), (180.0, 137.0)),
    ((140.0, 301.0), (303.0, 264.0), (238.0, 542.0)),
    ((436.0, 615.0), (739.0, 380.0), (925.0, 792.0)),
)
"""Of COCO's objects, as published with YOLOv5; YOLOv7-tiny and YOLOv7-W6 have the same."""


@dataclass(frozen=True)
class YOLODescription(ABC):
    """What all descriptions hold: the network's name, its classes, and for each level (stride 8, 16, 32, …)
    the (width, height) of its anchors in pixels.

    Raises `ValueError` naming the field and the value.
    """

    network: str
    names: tuple[str, ...]
    anchors: Levels

    def check(self) -> None:
        """Raise `ValueError` for names and anchors that make no head."""
        levels = len(self.anchors)
        require(levels in (3, 4), f"anchors: {levels} levels; 3 (strides 8, 16, 32) or 4 (and 64)")
        require(len(self.names) > 0, "names: at least one class is needed")
        require(all(self.names), f"names: {self.names}; no class may have an empty name")
        anchors = [pair for level in self.anchors for pair in level]
        same_count = len({len(level) for level in self.anchors}) == 1
        require(
            same_count and len(anchors) > 0 and all(len(pair) == 2 and min(pair) > 0 for pair in anchors),
            "anchors: each level needs the same number of (width, height) pairs, in pixels, all positive",
        )

    @property
    def num_classes(self) -> int:
        """How many classes have a name."""
        return len(self.names)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the picture in a cell, for each level: 8, 16, 32 (, 64)."""
        return tuple(FIRST_STRIDE << level for level in range(len(self.anchors)))

    def with_anchors(self, anchors: AnchorLists) -> Self:
        """The same with other anchors, (width, height) in pixels for each level."""
        return replace(self, anchors=levels_of(anchors))

    def with_names(self, names: Sequence[str]) -> Self:
        """The same with other names of the classes."""
        return replace(self, names=tuple(names))

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and text, for JSON or YAML."""


class CommonDepartures(TypedDict, total=False):
    """What any network may have other than its name says."""

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
    activation: str
    """A name that `unbranch.blocks` knows."""


def check_activation(name: str) -> None:
    """Raise `ValueError` for a name that `unbranch.blocks` does not know."""
    require(name in ACTIVATIONS, f"activation: {name!r}; one of {', '.join(ACTIVATIONS)}")


def check_options(given: Mapping[str, Any], departures: type) -> None:
    """Raise `ValueError` for options that `departures`, a `TypedDict`, does not have."""
    known = departures.__annotations__
    unknown = [key for key in given if key not in known]
    require(not unknown, f"unknown option {', '.join(unknown)}; known are {', '.join(known)}")


def class_names(departures: CommonDepartures) -> tuple[str, ...]:
    """The names of the classes, or as many as there are to be."""
    count = departures.get("num_classes")
    names = departures.get("names")
    require(count is None or count > 0, f"num_classes: {count}; a positive number is needed")
    if names is None:
        return tuple(f"class{i}" for i in range(80 if count is None else count))
    require(not isinstance(names, str), f"names: {names!r} is one text; a list of names is needed")
    require(count in (None, len(names)), f"num_classes: {count}, but {len(names)} names are given")
    return tuple(names)


def levels_of(anchors: AnchorLists) -> Levels:
    """Anchors as tuples of floats."""
    for level in anchors:
        require(
            all(len(pair) == 2 for pair in level), f"anchors: {level!r}; (width, height) pairs are needed"
        )
    return tuple(tuple((float(pair[0]), float(pair[1])) for pair in level) for level in anchors)


def choices(
    block: str | Mapping[str, Any] | None, own: Mapping[str, BlockChoice], shortcut: str | None
) -> tuple[BlockChoice, ...]:
    """The block of each stage; `own` are the stages, each with the block it has where nothing is said of it."""
    if block is None:
        chosen = list(own.values())
    elif isinstance(block, str) or "kind" in block:
        chosen = [BlockChoice.from_plain(block)] * len(own)
    else:
        unknown = [str(key) for key in block if key != "default" and key not in own]
        require(not unknown, f"block: no stage {', '.join(unknown)}; there are default, {', '.join(own)}")
        usual = {stage: block.get("default", choice.to_plain()) for stage, choice in own.items()}
        chosen = [BlockChoice.from_plain(block.get(stage, usual[stage])) for stage in own]
    return tuple(choice.with_shortcut(shortcut) for choice in chosen)


def read_plain(plain: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
    """The options that plain data hold, of the kinds that they must be; YOLO's spellings of names and anchors
    as ours.

    Raises `ValueError` for unknown keys and values of another kind.
    """
    unknown = [str(key) for key in plain if key not in kinds]
    require(not unknown, f"unknown key {', '.join(unknown)}; known are {', '.join(kinds)}")
    for key, value in plain.items():
        fits, wanted = kinds[key]
        require(value is None or fits(value), f"{key}: {value!r}; {wanted} is needed")
    given = {key: value for key, value in plain.items() if value is not None}
    if "names" in given and isinstance(given["names"], Mapping):
        given["names"] = _in_order(given["names"])
    if "anchors" in given:
        given["anchors"] = [_pairs(level) for level in given["anchors"]]
    return given


def _in_order(names: Mapping[Any, str]) -> list[str]:
    """Names from YOLO's mapping `{0: …, 1: …}`."""
    indices = {int(key): name for key, name in names.items() if str(key).isdigit()}
    require(
        sorted(indices) == list(range(len(names))),
        f"names: the classes {list(names)} are not 0 to {len(names) - 1}",
    )
    return [indices[i] for i in range(len(indices))]


def _pairs(level: Sequence[Any]) -> list[Sequence[Number]]:
    """Pairs as they are; YOLO's flat rows `[w, h, w, h, …]` as pairs."""
    if not all(is_number(value) for value in level):
        return list(level)
    require(len(level) % 2 == 0, f"anchors: {list(level)!r} has a width without a height")
    return list(zip(level[::2], level[1::2], strict=True))


def is_number(value: Any) -> bool:
    """A number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """A whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    """Text."""
    return isinstance(value, str)


def is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is a list of what `fits`."""
    return lambda value: isinstance(value, list | tuple) and all(fits(part) for part in value)


def _is_text_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value.values())


_is_anchor_row = is_list_of(lambda part: is_number(part) or is_list_of(is_number)(part))

COMMON_KINDS: Kinds = {
    "network": (is_text, "a name"),
    "num_classes": (is_count, "a whole number"),
    "names": (lambda value: is_list_of(is_text)(value) or _is_text_mapping(value), "a list of names"),
    "anchors": (is_list_of(_is_anchor_row), "a list of (width, height) pairs for each level"),
    "block": (lambda value: isinstance(value, str | Mapping), "a kind, or a mapping"),
    "shortcut": (is_text, "a kind of shortcut"),
    "activation": (is_text, "a name"),
}
"""What plain data may hold under the keys that all networks have, and how to say it."""


def require(holds: bool, message: str) -> None:
    """Raise `ValueError` where it does not hold."""
    if not holds:
        raise ValueError(message)
