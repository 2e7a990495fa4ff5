"""Sums, differences, scales and shifts: ``y = a x + b`` with numbers or with one constant per channel."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from unbranch.affine import Affine, NotLinear
from unbranch.ops.table import (
    Argument,
    Identity,
    Map,
    Operand,
    Record,
    Sum,
    along_axis,
    finite,
    operand,
    reads,
)

Number = int | float


@dataclass(frozen=True, eq=False)
class ScaleShift(Map):
    """``scale * x + shift``: each one number or a vector along ``axis``."""

    scale: Tensor | None
    shift: Tensor | None
    axis: int | None

    def affine(self, channels: int) -> Affine:
        """A diagonal."""
        scale = torch.ones(1, dtype=torch.float64) if self.scale is None else self.scale.double()
        shift = None if self.shift is None else self.shift.double().expand(channels)
        scale = scale if shift is None else scale.to(shift.device)
        return Affine.diagonal(scale.expand(channels), shift, rank=0)

    @property
    def is_neutral(self) -> bool:
        """A sum with zeros or a product with ones."""
        scales = self.scale is not None and bool((self.scale != 1).any())
        return not scales and (self.shift is None or not self.shift.any())


def scaled(value: Operand, factor: Any) -> ScaleShift:
    """``factor * value``."""
    axis, numbers = _constant(factor, value)
    return ScaleShift(numbers, None, axis)


def shifted(value: Operand, offset: Any, sign: Number = 1) -> ScaleShift:
    """``sign * value + offset``."""
    axis, numbers = _constant(offset, value)
    scale = None if sign == 1 else torch.full((1,), sign, dtype=torch.float64)
    return ScaleShift(scale, numbers, axis)


def combined(a: Any, b: Any, fa: Number, fb: Number) -> Record:
    """``fa * a + fb * b``, where at least one of them depends on the input."""
    if isinstance(a, Operand) and isinstance(b, Operand):
        if a.shape != b.shape:
            raise NotLinear(f"a sum that broadcasts {a.shape} with {b.shape}")
        return Sum((float(fa), float(fb)))
    if isinstance(a, Operand):
        return shifted(a, b * fb, fa)
    if isinstance(b, Operand):
        return shifted(b, a * fa, fb)
    raise NotLinear("a sum that does not depend on the input")


def product(a: Any, b: Any) -> ScaleShift:
    """``a * b``, where exactly one of them depends on the input."""
    if isinstance(a, Operand) and isinstance(b, Operand):
        raise NotLinear("a product of two values")
    if isinstance(a, Operand):
        return scaled(a, b)
    return scaled(operand(b, "the product"), a)


def quotient(a: Any, b: Any) -> ScaleShift:
    """``a / b`` with a constant ``b``."""
    if isinstance(b, Operand):
        raise NotLinear("a division by a value")
    _check_real(b)
    if not b.is_meta and bool((b == 0).any()) if isinstance(b, Tensor) else b == 0:
        raise NotLinear("a division by zero")
    return scaled(operand(a, "the dividend"), 1.0 / (b.double() if isinstance(b, Tensor) else b))


def _check_real(number: Any) -> None:
    if isinstance(number, Tensor) and number.is_complex():
        raise NotLinear(f"a constant of {number.dtype}")


def _constant(number: Any, value: Operand) -> tuple[int | None, Tensor]:
    if not isinstance(number, Tensor):
        if not isinstance(number, int | float) or not isfinite(number):
            raise NotLinear(f"the constant {number}")
        return None, torch.full((1,), float(number), dtype=torch.float64)
    _check_real(number)
    return along_axis(finite(number, "the constant"), value.shape)


@reads("aten.add.Tensor", "aten.add_.Tensor", "aten.add.Scalar", "aten.add_.Scalar")
def add(self, other, *, alpha: Number = 1) -> Record:
    return combined(self, other, 1, alpha)


@reads(
    "aten.sub.Tensor",
    "aten.sub_.Tensor",
    "aten.sub.Scalar",
    "aten.sub_.Scalar",
    "aten.subtract.Tensor",
    "aten.subtract_.Tensor",
)
def sub(self, other, *, alpha: Number = 1) -> Record:
    return combined(self, other, 1, -alpha)


@reads("aten.rsub.Tensor")
def rsub(self, other, *, alpha: Number = 1) -> Record:
    return combined(self, other, -alpha, 1)


@reads("aten.rsub.Scalar")
def rsub_scalar(self, other, alpha: Number = 1) -> Record:
    return combined(self, other, -alpha, 1)


@reads(
    "aten.mul.Tensor",
    "aten.mul_.Tensor",
    "aten.mul.Scalar",
    "aten.mul_.Scalar",
    "aten.multiply.Tensor",
    "aten.multiply_.Tensor",
)
def mul(self, other) -> Record:
    return product(self, other)


@reads(
    "aten.div.Tensor",
    "aten.div_.Tensor",
    "aten.div.Scalar",
    "aten.div_.Scalar",
    "aten.divide.Tensor",
    "aten.divide_.Tensor",
    "aten.true_divide.Tensor",
)
def div(self, other) -> Record:
    return quotient(self, other)


@reads("aten.neg.default", "aten.neg_.default", "aten.negative.default", "aten.negative_.default")
def neg(self: Any) -> Record:
    return scaled(self, -1.0)


def _unless_neutral(record: Record) -> Record:
    """In a file nothing is written in place or made anew for its own sake: an op that changes no value is none."""
    return Identity() if isinstance(record, ScaleShift) and record.is_neutral else record


@reads("onnx.Add")
def onnx_add(A: Argument, B: Argument) -> Record:
    return _unless_neutral(combined(A, B, 1, 1))


@reads("onnx.Sub")
def onnx_sub(A: Argument, B: Argument) -> Record:
    return _unless_neutral(combined(A, B, 1, -1))


@reads("onnx.Mul")
def onnx_mul(A: Argument, B: Argument) -> Record:
    return _unless_neutral(product(A, B))


@reads("onnx.Div")
def onnx_div(A: Argument, B: Argument) -> Record:
    return _unless_neutral(quotient(A, B))


@reads("onnx.Neg")
def onnx_neg(X: Argument) -> Record:
    return scaled(operand(X, "the input"), -1.0)


@reads("onnx.Sum")
def onnx_sum(*data_0: Argument) -> Record:
    values = [part for part in data_0 if isinstance(part, Operand)]
    if len(values) < len(data_0):
        offsets = [part for part in data_0 if isinstance(part, Tensor)]
        if len(values) != 1:
            raise NotLinear(f"a sum of {len(values)} values and {len(offsets)} constants in one op")
        return _unless_neutral(combined(values[0], sum(offsets[1:], offsets[0]), 1, 1))
    if any(value.shape != values[0].shape for value in values):
        raise NotLinear(f"a sum that broadcasts {', '.join(str(value.shape) for value in values)}")
    return Sum((1.0,) * len(values))
