"""The layers of a YOLOv7 as plain data: each has a name, a kind, and the names of what it reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from unbranch.blocks.activation import Activation
from unbranch.models.yolo.data import is_count, is_list_of, is_text, require
from unbranch.models.yolo.recipes import BlockChoice, Conv, check_block
from unbranch.models.yolov7.layers import ELAN, SPPCSPC, Join, Shrink

IMAGE = "image"
MULTIPLE = 8
RESERVED = frozenset(dir(nn.ModuleDict()))


@dataclass(frozen=True)
class Size:
    """Of a map: its channels, and the pixels of the picture between two of its cells."""

    channels: int
    stride: int


@dataclass(frozen=True)
class Layer:
    """One layer; `channels` is 0 for a kind that makes none of its own.

    >>> Layer("stem", "conv", ("image",), 32, {"kernel": 3}).to_plain()
    {'name': 'stem', 'kind': 'conv', 'from': ['image'], 'channels': 32, 'kernel': 3}
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    channels: int = 0
    options: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"layers: {self.name}"
        usable = self.name.isidentifier() and self.name != IMAGE and self.name not in RESERVED
        require(usable, f"layers: {self.name!r} cannot be a layer's name; one word, and none of torch's own")
        require(self.kind in LAYERS, f"{where}: kind {self.kind!r}; one of {', '.join(LAYERS)}")
        kind = LAYERS[self.kind]
        unknown = [name for name in self.options if name not in kind.options]
        require(
            not unknown,
            f"{where}: {self.kind} has no option {unknown}; {list(kind.options) or 'it has none'}",
        )
        wrong = [
            name
            for name, value in self.options.items()
            if not isinstance(value, type(kind.options[name])) or (is_count(value) and value < 1)
        ]
        require(not wrong, f"{where}: {dict(self.options)}; {wrong} of another kind or below 1")
        needs = kind.has_channels
        require(
            self.channels > 0 if needs else self.channels == 0,
            f"{where}: {self.channels} channels; {self.kind} {'needs some' if needs else 'makes none'}",
        )
        lowest, highest = kind.inputs
        require(
            lowest <= len(self.inputs) <= highest, f"{where}: {self.kind} cannot read {len(self.inputs)} maps"
        )

    @classmethod
    def from_plain(cls, plain: Any) -> "Layer":
        """From a mapping with `name`, `kind`, `from`, `channels` and the kind's options."""
        require(isinstance(plain, Mapping), f"layers: {plain!r} is no mapping")
        rest = {key: value for key, value in plain.items() if key not in ("name", "kind", "from", "channels")}
        name, kind, inputs = (plain.get(key) for key in ("name", "kind", "from"))
        channels = plain.get("channels", 0)
        fits = is_text(name) and is_text(kind) and is_list_of(is_text)(inputs) and is_count(channels)
        require(fits, f"layers: {plain!r}; a name, a kind, from: a list of names, and channels are needed")
        return cls(str(name), str(kind), tuple(inputs or ()), channels, rest)

    def to_plain(self) -> dict[str, Any]:
        """What `from_plain` reads."""
        channels = {"channels": self.channels} if self.channels else {}
        return {
            "name": self.name, "kind": self.kind, "from": list(self.inputs), **channels, **self.options,
        }  # fmt: skip

    def scaled(self, width: float) -> "Layer":
        """The same with all its channels multiplied, upwards to multiples of 8."""

        def wide(channels: int) -> int:
            return -(-int(channels * width) // MULTIPLE) * MULTIPLE

        own = {key: wide(v) if key in ("width", "inner") else v for key, v in self.options.items()}
        return replace(self, channels=wide(self.channels), options=own)

    def option(self, name: str) -> int:
        """Given, or the kind's own."""
        return self.options.get(name, LAYERS[self.kind].options[name])


@dataclass(frozen=True)
class Kind:
    """A kind of layer: how it is built, and the map that it makes of the maps it reads.

    options: those it has, with what they are where not given. inputs: fewest and most.
    """

    build: Callable[[Layer, Sequence[int], BlockChoice, Activation], nn.Module]
    size: Callable[[Layer, Sequence[Size]], Size]
    options: Mapping[str, int]
    inputs: tuple[int, int] = (1, 1)
    has_channels: bool = True
    places: Callable[[Layer, int], Sequence[tuple[int, int]]] | None = None
    """Channels in and out of each place where a chosen block stands; None for a kind without one."""


def _kept(layer: Layer, sizes: Sequence[Size]) -> Size:
    return Size(layer.channels, sizes[0].stride)


def _strided(layer: Layer, sizes: Sequence[Size]) -> Size:
    return Size(layer.channels, sizes[0].stride * layer.option("stride"))


def _shrunk(layer: Layer, sizes: Sequence[Size]) -> Size:
    x, *others = sizes
    require(
        all(other.stride == 2 * x.stride for other in others),
        f"layers: {layer.name} joins a map of stride {2 * x.stride} with others of strides "
        f"{[other.stride for other in others]}",
    )
    return Size(layer.channels + sum(other.channels for other in others), 2 * x.stride)


def _joined(layer: Layer, sizes: Sequence[Size]) -> Size:
    coarse, fine = sizes
    require(
        coarse.stride == 2 * fine.stride,
        f"layers: {layer.name} enlarges a map of stride {coarse.stride} to one of {fine.stride}",
    )
    return Size(2 * layer.channels, fine.stride)


def _elan(layer: Layer, c_in: Sequence[int], block: BlockChoice, activation: Activation) -> nn.Module:
    width, inner, depth = (layer.option(name) for name in ("width", "inner", "depth"))
    return ELAN(c_in[0], layer.channels, width, inner, depth, bool(layer.option("dense")), block, activation)


def _elan_places(layer: Layer, c_in: int) -> list[tuple[int, int]]:
    width, inner = layer.option("width"), layer.option("inner")
    return [(inner if i else width, inner) for i in range(layer.option("depth"))]


LAYERS: Mapping[str, Kind] = {
    "conv": Kind(
        lambda one, c, _, act: Conv(
            c[0], one.channels, one.option("kernel"), one.option("stride"), activation=act
        ),
        _strided,
        {"kernel": 1, "stride": 1},
    ),
    "block": Kind(
        lambda one, c, block, act: block.build(c[0], one.channels, act),
        _kept,
        {},
        places=lambda one, c_in: [(c_in, one.channels)],
    ),
    "elan": Kind(_elan, _kept, {"width": 64, "inner": 64, "depth": 4, "dense": True}, places=_elan_places),
    "shrink": Kind(
        lambda one, c, _, act: Shrink(c[0], one.channels, bool(one.option("pooled")), act),
        _shrunk,
        {"pooled": True},
        (1, 8),
    ),
    "join": Kind(lambda one, c, _, act: Join(c[0], c[1], one.channels, act), _joined, {}, (2, 2)),
    "spp": Kind(
        lambda one, c, _, act: SPPCSPC(c[0], one.channels, bool(one.option("light")), act),
        _kept,
        {"light": False},
    ),
    "maxpool": Kind(
        lambda *_: nn.MaxPool2d(2),
        lambda _, sizes: Size(sizes[0].channels, 2 * sizes[0].stride),
        {},
        has_channels=False,
    ),
    "reorg": Kind(
        lambda *_: nn.PixelUnshuffle(2),
        lambda _, sizes: Size(4 * sizes[0].channels, 2 * sizes[0].stride),
        {},
        has_channels=False,
    ),
}
"""Kinds of layer by name."""


def sizes_of(layers: Sequence[Layer]) -> dict[str, Size]:
    """The map that each layer makes, by name, the picture's included.

    Raises `ValueError` for a name that comes twice, a layer that reads what is not there before it, and maps
    of sizes that do not go together.
    """
    known = {IMAGE: Size(3, 1)}
    for layer in layers:
        require(layer.name not in known, f"layers: two are named {layer.name}")
        missing = [name for name in layer.inputs if name not in known]
        require(
            not missing, f"layers: {layer.name} reads {', '.join(missing)}, which no layer before it makes"
        )
        known[layer.name] = LAYERS[layer.kind].size(layer, [known[name] for name in layer.inputs])
    return known


def check_blocks(layers: Sequence[Layer], blocks: Mapping[str, BlockChoice]) -> None:
    """Raise `ValueError`, naming the stage, where a block cannot stand where it is to stand."""
    sizes = sizes_of(layers)
    for layer in layers:
        places = LAYERS[layer.kind].places
        if places is not None:
            for c_in, c_out in dict.fromkeys(places(layer, sizes[layer.inputs[0]].channels)):
                check_block(blocks[layer.name], layer.name, c_in, c_out)


def needed_for(wanted: Sequence[str], layers: Sequence[Layer]) -> frozenset[str]:
    """The names of the layers that `wanted` are made with, themselves included."""
    needed = set(wanted)
    for layer in reversed(layers):
        if layer.name in needed:
            needed.update(layer.inputs)
    return frozenset(needed)
