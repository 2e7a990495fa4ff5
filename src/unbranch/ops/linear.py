"""Linear layers and products with a constant matrix: ``y = x A^T + b`` along the last axis, a pointwise convolution."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unbranch.affine import Affine, NotLinear
from unbranch.ops.table import Argument, Map, Operand, along_axis, constant, operand, reads


@dataclass(frozen=True, eq=False)
class Linear(Map):
    """A matrix (out, in) on the last axis."""

    weight: Tensor
    bias: Tensor | None
    axis = -1

    def affine(self, channels: int) -> Affine:
        """The matrix, as one group."""
        return Affine.pointwise(self.weight.unsqueeze(0), self.bias, rank=0)


@dataclass(frozen=True, eq=False)
class ChannelMatrix(Map):
    """A matrix (out, in) from the left on values (batch, channels, length): it mixes axis 1."""

    weight: Tensor

    def affine(self, channels: int) -> Affine:
        """The matrix, as one group."""
        return Affine.pointwise(self.weight.unsqueeze(0), rank=0)


def build(x, weight, bias, alpha: int | float = 1, beta: int | float = 1) -> Linear:
    """The record of a product with the constant ``weight`` (out, in)."""
    operand(x, "the input")
    if constant(weight, "the matrix").ndim != 2:
        raise NotLinear(f"a product with a matrix of shape {tuple(weight.shape)}")
    if constant(bias, "the bias") is not None:
        axis, bias = along_axis(bias, (1, weight.shape[0]))
        bias = beta * (bias if axis == 1 else bias.expand(weight.shape[0]))
    return Linear(weight if alpha == 1 else alpha * weight, bias)


@reads("aten.linear.default")
def linear(input: Any, weight: Any, bias: Any = None) -> Linear:
    return build(input, weight, bias)


@reads("aten.addmm.default")
def addmm(self: Any, mat1: Any, mat2: Any, *, beta: int | float = 1, alpha: int | float = 1) -> Linear:
    return build(mat1, constant(mat2, "the matrix").t(), self, alpha, beta)


def product(x: Any, matrix: Any) -> Linear:
    """The record of ``x @ matrix``."""
    if constant(matrix, "the right-hand matrix").ndim != 2:
        raise NotLinear(f"a product with a matrix of shape {tuple(matrix.shape)}")
    return build(x, matrix.t(), None)


@reads("aten.mm.default")
def mm(self: Any, mat2: Any) -> Linear:
    return product(self, mat2)


@reads("aten.matmul.default")
def matmul(self: Any, other: Any) -> Linear:
    return product(self, other)


@reads("onnx.MatMul")
def onnx_matmul(A: Argument, B: Argument) -> Linear | ChannelMatrix:
    if isinstance(B, Operand) and isinstance(A, Tensor):
        if A.ndim != 2 or B.ndim != 3:
            raise NotLinear(f"a matrix of shape {tuple(A.shape)} times a value of shape {B.shape}")
        return ChannelMatrix(A)
    return matmul(operand(A, "the left-hand side"), constant(B, "the right-hand matrix"))


@reads("onnx.Gemm")
def onnx_gemm(
    A: Argument,
    B: Argument,
    C: Argument = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Linear:
    if transA:
        raise NotLinear("a product with the transposed value")
    weight = constant(B, "the matrix")
    return build(A, weight if transB else weight.t(), C, alpha, beta)
