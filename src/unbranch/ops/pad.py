"""Padding: a border of zeros, of a constant, or of the value's own entries (reflect, replicate, circular)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unbranch.affine import Affine, NotLinear
from unbranch.ops.table import Argument, Map, Operand, Pad, Record, constant, integers, operand, reads

_MODES = {"reflect": "reflect", "replicate": "replicate", "circular": "circular"}
_ONNX_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@dataclass(frozen=True)
class MirroredPad(Map):
    """A border made of the value itself."""

    padding: tuple[tuple[int, int], ...]
    mode: str

    def affine(self, channels: int) -> Affine:
        """An identity that is padded."""
        rank = len(self.padding)
        weight = torch.ones((channels, 1, 1) + (1,) * rank, dtype=torch.float64)
        return Affine(weight, None, (1,) * rank, self.padding, (1,) * rank, self.mode)


def pairs(padding: Sequence[int], ndim: int) -> tuple[tuple[int, int], ...]:
    """Torch's padding list, last axis first, as a (before, after) pair for each of ``ndim`` axes."""
    given = [(padding[i], padding[i + 1]) for i in range(0, len(padding), 2)]
    return tuple([(0, 0)] * (ndim - len(given)) + given[::-1])


def mirrored(x: Operand, pads: tuple[tuple[int, int], ...], mode: str) -> MirroredPad:
    """The record of a padding that copies entries; ``pads`` holds a pair for each axis of the value."""
    value = operand(x, "the input")
    if value.ndim < 3 or any(side for pair in pads[:2] for side in pair):
        raise NotLinear(f"{mode} padding of the batch or channel axis of {value.shape}")
    return MirroredPad(pads[2:], mode)


def bordered(x: Operand, pads: tuple[tuple[int, int], ...], value: int | float) -> Pad:
    """The record of a constant padding."""
    operand(x, "the input")
    return Pad(pads, float(value))


@reads("aten.constant_pad_nd.default")
def constant_pad_nd(self: Any, pad: Sequence[int], value: int | float = 0) -> Pad:
    return bordered(self, pairs(pad, operand(self, "the input").ndim), value)


@reads("aten.pad.default")
def pad(self: Any, pad: Sequence[int], mode: str = "constant", value: int | float | None = None) -> Record:
    pads = pairs(pad, operand(self, "the input").ndim)
    if mode == "constant":
        return bordered(self, pads, value or 0.0)
    return mirrored(self, pads, _MODES[mode])


@reads("aten.reflection_pad1d.default", "aten.reflection_pad2d.default", "aten.reflection_pad3d.default")
def reflection_pad(self: Any, padding: Sequence[int]) -> MirroredPad:
    return mirrored(self, pairs(padding, operand(self, "the input").ndim), "reflect")


@reads("aten.replication_pad1d.default", "aten.replication_pad2d.default", "aten.replication_pad3d.default")
def replication_pad(self: Any, padding: Sequence[int]) -> MirroredPad:
    return mirrored(self, pairs(padding, operand(self, "the input").ndim), "replicate")


@reads("aten._pad_circular.default")
def pad_circular(self: Any, pad: Sequence[int]) -> MirroredPad:
    return mirrored(self, pairs(pad, operand(self, "the input").ndim), "circular")


@reads("onnx.Pad")
def onnx_pad(
    data: Argument,
    pads: Argument,
    constant_value: Argument = None,
    axes: Argument = None,
    *,
    mode: str = "constant",
) -> Record:
    value = operand(data, "the input")
    ndim = value.ndim
    sides = integers(pads, "the padding")
    chosen = list(range(ndim)) if axes is None else integers(axes, "the axes")
    half = len(sides) // 2
    given = {a % ndim: (sides[i], sides[half + i]) for i, a in enumerate(chosen)}
    every = tuple(given.get(axis, (0, 0)) for axis in range(ndim))
    if mode == "constant":
        filling = constant(constant_value, "the constant")
        return bordered(value, every, 0.0 if filling is None else float(filling))
    return mirrored(value, every, _ONNX_MODES[mode])
