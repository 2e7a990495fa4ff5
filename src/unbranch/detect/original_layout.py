"""How the original YOLOv5 numbers its layers, and the sizes that its weights have."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from unbranch.detect.errors import InputError
from unbranch.detect.pickles import Record
from unbranch.models.yolo.data import FIRST_STRIDE
from unbranch.models.yolov5 import Description, describe

_ACTIVATIONS = {
    "SiLU": "silu",
    "ReLU": "relu",
    "ReLU6": "relu6",
    "Hardswish": "hardswish",
    "GELU": "gelu",
    "Mish": "mish",
    "Sigmoid": "sigmoid",
}


_CONV_NAMES = (
    (r"(^|\.)conv(?=\.|$)", r"\1branches.dense.0"),
    (r"(^|\.)bn(?=\.|$)", r"\1branches.dense.1"),
    (r"(^|\.)act(?=\.|$)", r"\1activation"),
)
_C3_NAMES = (
    (r"^m\.(\d+)\.cv1", r"m.\1.first"),
    (r"^m\.(\d+)\.cv2", r"m.\1.second"),
    (r"^m(?=\.|$)", "bottlenecks"),
    (r"^cv1", "main"),
    (r"^cv2", "bypass"),
    (r"^cv3", "merge"),
    *_CONV_NAMES,
)
_SPPF_NAMES = ((r"^cv1", "reduce"), (r"^cv2", "merge"), (r"^m(?=\.|$)", "pool"), *_CONV_NAMES)


@dataclass
class Original:
    """What a checkpoint holds: tensors by their original names, the records of the layers, and what it says
    of itself.
    """

    where: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, Record] = field(default_factory=dict)
    names: Any = None
    strides: Sequence[float] | None = None


@dataclass(frozen=True)
class Layout:
    """How the original numbers its layers, and the sizes that its weights have."""

    levels: int
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    neck_depth: int
    classes: int
    places: Mapping[str, str]
    sources: Mapping[int, int | list[int]]

    @classmethod
    def of(cls, original: Original) -> Self:
        """Read the layout off the tensors. Raises `InputError` where it is not that of release 6 or 7."""
        last = max(
            (int(m[1]) for m in map(re.compile(r"model\.(\d+)\.").match, original.tensors) if m), default=-1
        )
        levels = {24: 3, 33: 4}.get(last)
        anchors = original.tensors.get(f"model.{last}.anchors")
        if levels is None or anchors is None or anchors.ndim != 3 or len(anchors) != levels:
            raise InputError(
                f"{original.where}: not the layout of YOLOv5 release 6 or 7 (a Detect head as layer 24, or "
                f"33 for four levels); its last layer with weights is {last}. Other releases "
                "and segmentation or classification networks cannot be read"
            )
        places, sources = _numbering(levels)
        stages = [f"model.{2 * k}" for k in range(1, levels + 2)]
        neck = [
            number for number, place in places.items() if place.startswith(("neck.downward", "neck.upward"))
        ]
        maps = original.tensors.get(f"model.{last}.m.0.bias")
        if maps is None or maps.numel() % anchors.shape[1]:
            raise InputError(
                f"{original.where}: model.{last}.m.0.bias is missing or fits no {anchors.shape[1]} anchors"
            )
        neck_depths = {_depth(original, number) for number in neck}
        if len(neck_depths) != 1:
            raise InputError(
                f"{original.where}: the C3 of the neck have different depths, {sorted(neck_depths)}"
            )
        return cls(
            levels,
            (
                _outputs(original, "model.0.conv"),
                *(_outputs(original, f"{stage}.cv3.conv") for stage in stages),
            ),
            tuple(_depth(original, stage) for stage in stages),
            neck_depths.pop(),
            maps.numel() // anchors.shape[1] - 5,
            places,
            sources,
        )

    @property
    def last(self) -> int:
        """The number of the Detect head: 24 for three levels, 33 for four."""
        return 9 * self.levels - 3

    def ours(self, name: str) -> str | None:
        """Our name for a tensor or module of the original's; None for what we have no place for.

        `model.2.m.0.cv2.bn.weight` is `backbone.stages.0.bottlenecks.0.second.branches.dense.1.weight`.
        """
        words = name.split(".")
        taken = 3 if words[:3] == ["model", str(self.last), "m"] else 2
        place = self.places.get(".".join(words[:taken]))
        if place is None:
            return None
        inner = ".".join(words[taken:])
        for pattern, replacement in _SPPF_NAMES if place == "backbone.pool" else _C3_NAMES:
            inner = re.sub(pattern, replacement, inner)
        return f"{place}.{inner}".rstrip(".")

    def description(self, original: Original) -> Description:
        """What our network is built from. Raises `InputError` where the file contradicts itself."""
        stored = original.tensors[f"model.{self.last}.anchors"].float()
        strides = [FIRST_STRIDE << level for level in range(self.levels)]
        if original.strides is not None and list(original.strides) != strides:
            raise InputError(f"{original.where}: strides {list(original.strides)}; the layout has {strides}")
        anchors = stored * torch.tensor(strides).view(-1, 1, 1)
        try:
            return Description.from_dict(
                {
                    "network": self.closest(),
                    "num_classes": self.classes,
                    "names": original.names,
                    "anchors": anchors.tolist(),
                    "channels": self.channels,
                    "depths": self.depths,
                    "neck_depth": self.neck_depth,
                    "activation": _activation(original),
                }
            )
        except ValueError as error:
            raise InputError(f"{original.where}: {error}") from error

    def closest(self) -> str:
        """The name of the size that has these channels and depths; the smallest where none has."""
        suffix = "6" if self.levels == 4 else ""
        for letter in "nsmlx":
            known = describe(f"yolov5{letter}{suffix}", num_classes=1)
            if (known.channels, known.depths, known.neck_depth) == (
                self.channels,
                self.depths,
                self.neck_depth,
            ):
                return known.network
        return f"yolov5n{suffix}"


def _numbering(levels: int) -> tuple[dict[str, str], dict[int, int | list[int]]]:
    """Original layer → our module, and which layers feed the layers that are not fed by the one before."""
    places = {"model.0": "backbone.stem"}
    sources: dict[int, int | list[int]] = {}
    for k in range(1, levels + 2):
        places[f"model.{2 * k - 1}"] = f"backbone.shrink.{k - 1}"
        places[f"model.{2 * k}"] = f"backbone.stages.{k - 1}"
    at = 2 * levels + 3
    places[f"model.{at}"] = "backbone.pool"
    reduced: list[int] = []
    for j in range(levels - 1):
        places[f"model.{at + 1}"] = f"neck.reduce.{j}"
        reduced.append(at + 1)
        sources[at + 3] = [-1, 2 * (levels - j)]
        places[f"model.{at + 4}"] = f"neck.downward.{j}"
        at += 4
    heads = [at]
    for j in range(levels - 1):
        places[f"model.{at + 1}"] = f"neck.shrink.{j}"
        sources[at + 2] = [-1, reduced[-1 - j]]
        places[f"model.{at + 3}"] = f"neck.upward.{j}"
        at += 3
        heads.append(at)
    sources[at + 1] = heads
    places[f"model.{at + 1}.m"] = "detect.maps"
    return places, sources


def _outputs(original: Original, name: str) -> int:
    weight = original.tensors.get(f"{name}.weight")
    if weight is None or weight.ndim != 4:
        raise InputError(f"{original.where}: {name}.weight is missing, which a YOLOv5 of release 6 or 7 has")
    return weight.shape[0]


def _depth(original: Original, stage: str) -> int:
    pattern = re.compile(re.escape(stage) + r"\.m\.(\d+)\.")
    return len({found[1] for key in original.tensors if (found := pattern.match(key))})


def _activation(original: Original) -> str:
    """The one activation of all layers; SiLU where the file holds weights only."""
    found = {
        record.kind.name
        for name, record in original.layers.items()
        if name.endswith(".act") and record.kind.name != "Identity"
    }
    if len(found) > 1 or not found <= set(_ACTIVATIONS):
        raise InputError(
            f"{original.where}: activations {', '.join(sorted(found))}; one is needed, of "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[found.pop()] if found else "silu"
