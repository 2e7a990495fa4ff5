"""Other views of the same elements: reshapes, permutations, channel shuffle, concatenation."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from unbranch.affine import NotLinear
from unbranch.ops.table import (
    Argument,
    Concat,
    Identity,
    Operand,
    Pad,
    Permute,
    Record,
    Reshape,
    Take,
    axis_of,
    constant,
    integers,
    operand,
    reads,
)


def reshaped(x: Operand, shape: Sequence[int]) -> Reshape:
    """``x`` under ``shape``, of which one entry may be -1."""
    value = operand(x, "the input")
    known = prod(n for n in shape if n != -1)
    return Reshape(tuple(prod(value.shape) // max(known, 1) if n == -1 else n for n in shape))


def swapped(x: Operand, a: int, b: int) -> Permute:
    """Two axes exchanged."""
    value = operand(x, "the input")
    axes = list(range(value.ndim))
    a, b = axis_of(value, a), axis_of(value, b)
    axes[a], axes[b] = axes[b], axes[a]
    return Permute(tuple(axes))


def joined(values: Sequence[Argument], axis: int) -> Record:
    """The values side by side; every one must depend on the input."""
    parts = [operand(value, "a part of the concatenation") for value in values]
    if len(parts) == 1:
        return Identity()
    return Concat(axis % parts[0].ndim)


def framed(values: Sequence[Argument], axis: int) -> Pad:
    """One value between constants: a border of them."""
    at = [i for i, value in enumerate(values) if isinstance(value, Operand)]
    if len(at) != 1:
        raise NotLinear(f"a concatenation of {len(at)} values and {len(values) - len(at)} constants")
    ndim = operand(values[at[0]], "the framed value").ndim
    axis %= ndim
    if axis < 2:
        raise NotLinear(f"a constant beside a value along axis {axis}, which is not spatial")
    before = [part for part in values[: at[0]] if isinstance(part, Tensor)]
    after = [part for part in values[at[0] + 1 :] if isinstance(part, Tensor)]
    sides = tuple(sum(part.shape[axis] for part in parts) for parts in (before, after))
    pads = tuple((sides[0], sides[1]) if i == axis else (0, 0) for i in range(ndim))
    return Pad(pads, torch.cat([*before, *after], dim=axis))


@reads("aten.view.default", "aten._unsafe_view.default")
def view(self: Any, size: Sequence[int]) -> Reshape:
    return reshaped(self, size)


@reads("aten.reshape.default")
def reshape(self: Any, shape: Sequence[int]) -> Reshape:
    return reshaped(self, shape)


@reads("aten.reshape_as.default", "aten.view_as.default")
def reshape_as(self: Any, other: Any) -> Reshape:
    return Reshape(other.shape)


@reads("aten.flatten.using_ints")
def flatten(self: Any, start_dim: int = 0, end_dim: int = -1) -> Reshape:
    shape = operand(self, "the input").shape
    first, last = axis_of(self, start_dim), axis_of(self, end_dim)
    return Reshape((*shape[:first], prod(shape[first : last + 1]), *shape[last + 1 :]))


@reads("aten.unflatten.int")
def unflatten(self: Any, dim: int, sizes: Sequence[int]) -> Reshape:
    shape = operand(self, "the input").shape
    axis = dim % len(shape)
    known = prod(n for n in sizes if n != -1)
    inner = [shape[axis] // known if n == -1 else n for n in sizes]
    return Reshape((*shape[:axis], *inner, *shape[axis + 1 :]))


@reads("aten.unsqueeze.default")
def unsqueeze(self: Any, dim: int) -> Reshape:
    shape = list(operand(self, "the input").shape)
    shape.insert(dim % (len(shape) + 1), 1)
    return Reshape(tuple(shape))


@reads("aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(self: Any, dim: int | Sequence[int]) -> Reshape:
    shape = operand(self, "the input").shape
    axes = {axis_of(self, d) for d in ((dim,) if isinstance(dim, int) else dim)}
    return Reshape(tuple(n for i, n in enumerate(shape) if i not in axes or n != 1))


@reads("aten.squeeze.default")
def squeeze_all(self: Any) -> Reshape:
    return Reshape(tuple(n for n in operand(self, "the input").shape if n != 1))


@reads("aten.permute.default")
def permute(self: Any, dims: Sequence[int]) -> Permute:
    return Permute(tuple(d % operand(self, "the input").ndim for d in dims))


@reads("aten.movedim.int", "aten.moveaxis.int")
def movedim(self: Any, source: int, destination: int) -> Permute:
    axes = list(range(operand(self, "the input").ndim))
    moved = axes.pop(axis_of(self, source))
    axes.insert(axis_of(self, destination), moved)
    return Permute(tuple(axes))


@reads("aten.transpose.int", "aten.swapdims.default")
def transpose(self: Any, dim0: int, dim1: int) -> Permute:
    return swapped(self, dim0, dim1)


@reads("aten.swapaxes.default")
def swapaxes(self: Any, axis0: int, axis1: int) -> Permute:
    return swapped(self, axis0, axis1)


@reads("aten.t.default")
def t(self: Any) -> Permute:
    if operand(self, "the input").ndim != 2:
        raise NotLinear(f"a transpose of shape {self.shape}")
    return swapped(self, 0, 1)


@reads("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(self: Any, groups: int) -> Take:
    channels = operand(self, "the input").shape[1]
    each = channels // groups
    return Take(1, tuple(g * each + i for i in range(each) for g in range(groups)))


@reads("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(tensors: Sequence[Any], dim: int = 0) -> Record:
    return joined(tensors, dim)


@reads("onnx.Concat")
def onnx_concat(*inputs: Argument, axis: int) -> Record:
    if all(isinstance(value, Operand) for value in inputs):
        return joined(inputs, axis)
    return framed(inputs, axis)


@reads("onnx.Reshape")
def onnx_reshape(data: Argument, shape: Argument, *, allowzero: int = 0) -> Reshape:
    value = operand(data, "the input")
    target = integers(shape, "the shape")
    if not allowzero:
        target = [value.shape[i] if n == 0 else n for i, n in enumerate(target)]
    return reshaped(value, target)


@reads("onnx.Transpose")
def onnx_transpose(data: Argument, *, perm: Sequence[int] | None = None) -> Permute:
    value = operand(data, "the input")
    return permute(value, tuple(reversed(range(value.ndim))) if perm is None else perm)


@reads("onnx.Flatten")
def onnx_flatten(input: Argument, *, axis: int = 1) -> Reshape:
    shape = operand(input, "the input").shape
    at = axis + len(shape) if axis < 0 else axis
    return Reshape((prod(shape[:at]), prod(shape[at:])))


@reads("onnx.Squeeze")
def onnx_squeeze(data: Argument, axes: Argument = None) -> Reshape:
    if axes is None:
        raise NotLinear("a squeeze of whatever axes are 1")
    return squeeze(operand(data, "the input"), constant(axes, "the axes").flatten().tolist())


@reads("onnx.Unsqueeze")
def onnx_unsqueeze(data: Argument, axes: Argument) -> Reshape:
    own = list(operand(data, "the input").shape)
    given = constant(axes, "the axes").flatten().tolist()
    new = {axis % (len(own) + len(given)) for axis in given}
    return Reshape(tuple(1 if i in new else own.pop(0) for i in range(len(own) + len(given))))
