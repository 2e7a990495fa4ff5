"""What a YOLOv7 is built from: plain data that is checked and never evaluated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from unbranch.models.yolo.data import (
    COMMON_KINDS,
    CommonDepartures,
    Kinds,
    YOLODescription,
    check_activation,
    check_options,
    choices,
    class_names,
    is_list_of,
    is_number,
    is_text,
    levels_of,
    read_plain,
    require,
)
from unbranch.models.yolo.recipes import PLAIN, BlockChoice
from unbranch.models.yolov7.networks import NETWORKS
from unbranch.models.yolov7.plan import LAYERS, Layer, check_blocks, sizes_of


@dataclass(frozen=True)
class Description(YOLODescription):
    """A YOLOv7, completely: layers that read each other by name, and the maps that the head reads.

    layers: in running order; outputs: the layer of each level, fine to coarse; auxiliary: as many more, or
    none, that only teach. blocks: for each layer with a place for one, see `stage_names`.

    Raises `ValueError` naming the field and the value.

    >>> describe("yolov7-w6", num_classes=3).auxiliary
    ('teach1', 'teach2', 'teach3', 'teach4')
    """

    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]
    blocks: tuple[BlockChoice, ...]
    auxiliary: tuple[str, ...] = ()
    activation: str = "silu"

    def __post_init__(self) -> None:
        self.check()
        check_activation(self.activation)
        sizes = sizes_of(self.layers)
        for field, read in (("outputs", self.outputs), ("auxiliary", self.auxiliary)):
            if field == "auxiliary" and not read:
                continue
            missing = [name for name in read if name not in sizes]
            require(not missing, f"{field}: there is no layer {', '.join(missing)}")
            strides = tuple(sizes[name].stride for name in read)
            require(
                strides == self.strides,
                f"{field}: maps of strides {strides} for anchors of strides {self.strides}",
            )
        stages = self.stage_names
        require(
            len(self.blocks) == len(stages),
            f"blocks: {len(self.blocks)} given for the stages {', '.join(stages)}",
        )
        check_blocks(self.layers, dict(zip(stages, self.blocks, strict=True)))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The layers in which a block may be chosen, in running order."""
        return stage_names(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and text, for JSON or YAML; `from_dict` reads it back."""
        blocks = {stage: block.to_plain() for stage, block in zip(self.stage_names, self.blocks, strict=True)}
        return {
            "network": self.network,
            "names": list(self.names),
            "anchors": [[list(pair) for pair in level] for level in self.anchors],
            "layers": [layer.to_plain() for layer in self.layers],
            "outputs": list(self.outputs),
            "auxiliary": list(self.auxiliary),
            "activation": self.activation,
            "block": blocks,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Description":
        """The description that plain data hold: `network` (a name such as yolov7-tiny) and what departs from it.

        Keys are the arguments of `describe`. Raises `ValueError` for unknown keys and values of another kind.

        >>> Description.from_dict({"network": "yolov7", "names": ["cell"], "width": 0.25}).num_classes
        1
        """
        return describe(**read_plain(plain, _KINDS))


def stage_names(layers: Sequence[Layer]) -> tuple[str, ...]:
    """The layers in which a block may be chosen, in running order."""
    return tuple(layer.name for layer in layers if LAYERS[layer.kind].places is not None)


class Departures(CommonDepartures, total=False):
    """What a network may have other than its name says."""

    width: float
    """All channels multiplied with it, upwards to multiples of 8."""
    layers: Sequence[Mapping[str, Any]]
    """Other layers, in running order: mappings with `name`, `kind`, `from`, `channels` and the kind's options."""
    outputs: Sequence[str]
    """The layers that the head reads, fine to coarse."""
    auxiliary: Sequence[str]
    """The layers whose maps only teach, fine to coarse; none where empty."""


def describe(network: str = "yolov7", **departures: Unpack[Departures]) -> Description:
    """The description of a network by name (yolov7-tiny, yolov7, yolov7-w6) and what departs from it.

    Raises `ValueError` naming the argument and the value.

    >>> describe("yolov7-tiny", block={"neck1": "mobileone"}).stage_names[:2]
    ('stage1', 'stage2')
    """
    check_options(departures, Departures)
    require(network in NETWORKS, f"network: {network!r}; known are {', '.join(NETWORKS)}")
    layout = NETWORKS[network]
    width = departures.get("width", 1.0)
    require(width > 0, f"width: {width}; a positive number is needed")
    given = departures.get("layers")
    layers = [Layer.from_plain(one) for one in given] if given is not None else layout.layers
    layers = tuple(one.scaled(width) if width != 1 else one for one in layers)
    outputs = tuple(departures.get("outputs", layout.outputs))
    own = {name: layout.head_block if name in outputs else PLAIN for name in stage_names(layers)}
    return Description(
        network=network,
        names=class_names(departures),
        anchors=levels_of(departures.get("anchors", layout.anchors)),
        layers=layers,
        outputs=outputs,
        blocks=choices(departures.get("block"), own, departures.get("shortcut")),
        auxiliary=tuple(departures.get("auxiliary", layout.auxiliary)),
        activation=departures.get("activation", layout.activation),
    )


_KINDS: Kinds = {
    **COMMON_KINDS,
    "width": (is_number, "a number"),
    "layers": (is_list_of(lambda one: isinstance(one, Mapping)), "a list of mappings"),
    "outputs": (is_list_of(is_text), "a list of names"),
    "auxiliary": (is_list_of(is_text), "a list of names"),
}
"""What plain data may hold under each key, and how to say it."""
