"""Ops that return their operand: copies, aliases, and dropout in evaluation."""

from collections.abc import Sequence
from typing import Any

from unbranch.affine import NotLinear
from unbranch.ops.table import Argument, Identity, Operand, constant, integers, operand, reads


def _recast(x: Operand, device: Any) -> Identity:
    operand(x, "the input")
    if device is not None:
        raise NotLinear("it may move the value to another device")
    return Identity()


def _dropped(x: Operand, p: float, train: bool) -> Identity:
    operand(x, "the input")
    if train and p:
        raise NotLinear("dropout in training")
    return Identity()


@reads(
    "aten.alias.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.lift_fresh.default",
    "aten.lift_fresh_copy.default",
    "aten.positive.default",
)
def alias(self: Any) -> Identity:
    operand(self, "the input")
    return Identity()


@reads("aten.clone.default", "aten.contiguous.default")
def clone(self: Any, *, memory_format=None) -> Identity:
    operand(self, "the input")
    return Identity()


@reads("aten.to.dtype")
def to_dtype(self: Any, dtype, non_blocking=False, copy=False, memory_format=None) -> Identity:
    operand(self, "the input")
    return Identity()


@reads("aten.to.dtype_layout")
def to_layout(
    self: Any,
    *,
    dtype=None,
    layout=None,
    device=None,
    pin_memory=None,
    non_blocking=False,
    copy=False,
    memory_format=None,
) -> Identity:
    return _recast(self, device)


@reads("aten._to_copy.default")
def to_copy(
    self: Any,
    *,
    dtype=None,
    layout=None,
    device=None,
    pin_memory=None,
    non_blocking=False,
    memory_format=None,
) -> Identity:
    return _recast(self, device)


@reads("aten.type_as.default")
def type_as(self: Any, other) -> Identity:
    operand(self, "the input")
    if isinstance(other, Operand):
        raise NotLinear("its dtype is another value's")
    return Identity()


@reads("aten.expand.default")
def expand(self: Any, size: Sequence[int], *, implicit: bool = False) -> Identity:
    shape = operand(self, "the input").shape
    if len(size) != len(shape) or any(n not in (-1, m) for n, m in zip(size, shape, strict=True)):
        raise NotLinear(f"it repeats a value of shape {shape} to {tuple(size)}")
    return Identity()


@reads(
    "aten.dropout.default",
    "aten.feature_dropout.default",
    "aten.alpha_dropout.default",
    "aten.feature_alpha_dropout.default",
)
def dropout(input: Any, p: float, train: bool) -> Identity:
    return _dropped(input, p, train)


@reads("aten.dropout_.default", "aten.feature_dropout_.default")
def dropout_(self: Any, p: float, train: bool) -> Identity:
    return _dropped(self, p, train)


@reads("aten.native_dropout.default")
def native_dropout(input: Any, p: float, train: bool | None) -> tuple[Identity, None]:
    return _dropped(input, p, train is not False), None  # None trains, says torch


@reads("onnx.Identity")
def onnx_identity(input: Argument) -> Identity:
    return alias(operand(input, "the input"))


@reads("onnx.Dropout")
def onnx_dropout(
    data: Argument,
    ratio: Argument = None,
    training_mode: Argument = None,
    *,
    seed: int | None = None,
) -> Identity:
    training = constant(training_mode, "the training mode")
    share = constant(ratio, "the ratio")
    return dropout(
        operand(data, "the input"),
        0.5 if share is None else float(share),
        training is not None and bool(training),
    )


@reads("onnx.Cast")
def onnx_cast(input: Argument, *, to: int, saturate: int = 1, round_mode: str = "up") -> Identity:
    return alias(
        operand(input, "the input")
    )  # a cast that changes the type is refused with the types of its input and output


@reads("onnx.CastLike")
def onnx_cast_like(
    input: Argument, target_type: Argument, *, saturate: int = 1, round_mode: str = "up"
) -> Identity:
    return alias(operand(input, "the input"))


@reads("onnx.Expand")
def onnx_expand(input: Argument, shape: Argument) -> Identity:
    target, own = integers(shape, "the shape"), operand(input, "the input").shape
    lead = len(own) - len(target)
    if lead < 0 or any(n not in (1, own[lead + i]) for i, n in enumerate(target)):
        raise NotLinear(f"an expansion of {own} to {tuple(target)}")
    return Identity()
