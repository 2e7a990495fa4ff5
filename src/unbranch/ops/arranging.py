"""Other views of the same elements: reshapes, permutations, channel shuffle, concatenation."""

from collections.abc import Sequence
from math import prod

from unbranch.affine import NotLinear
from unbranch.ops.table import Concat, Identity, Operand, Permute, Record, Reshape, Take, operand, reads


def reshaped(x: Operand, shape: Sequence[int]) -> Reshape:
    """``x`` under ``shape``, of which one entry may be -1."""
    value = operand(x, "the input")
    known = prod(n for n in shape if n != -1)
    return Reshape(tuple(prod(value.shape) // max(known, 1) if n == -1 else n for n in shape))


def swapped(x: Operand, a: int, b: int) -> Permute:
    """Two axes exchanged."""
    axes = list(range(operand(x, "the input").ndim))
    axes[a], axes[b] = axes[b], axes[a]
    return Permute(tuple(axes))


def joined(values: Sequence[Operand], axis: int) -> Record:
    """The values side by side; every one must depend on the input."""
    parts = [operand(value, "a part of the concatenation") for value in values]
    if len(parts) == 1:
        return Identity()
    return Concat(axis % parts[0].ndim)


@reads("aten.view.default", "aten._unsafe_view.default")
def view(self: Operand, size: Sequence[int]) -> Reshape:
    return reshaped(self, size)


@reads("aten.reshape.default")
def reshape(self: Operand, shape: Sequence[int]) -> Reshape:
    return reshaped(self, shape)


@reads("aten.reshape_as.default", "aten.view_as.default")
def reshape_as(self: Operand, other: Operand) -> Reshape:
    return Reshape(other.shape)


@reads("aten.flatten.using_ints")
def flatten(self: Operand, start_dim: int = 0, end_dim: int = -1) -> Reshape:
    shape = operand(self, "the input").shape
    first, last = start_dim % len(shape), end_dim % len(shape)
    return Reshape((*shape[:first], prod(shape[first : last + 1]), *shape[last + 1 :]))


@reads("aten.unflatten.int")
def unflatten(self: Operand, dim: int, sizes: Sequence[int]) -> Reshape:
    shape = operand(self, "the input").shape
    axis = dim % len(shape)
    known = prod(n for n in sizes if n != -1)
    inner = [shape[axis] // known if n == -1 else n for n in sizes]
    return Reshape((*shape[:axis], *inner, *shape[axis + 1 :]))


@reads("aten.unsqueeze.default")
def unsqueeze(self: Operand, dim: int) -> Reshape:
    shape = list(operand(self, "the input").shape)
    shape.insert(dim % (len(shape) + 1), 1)
    return Reshape(tuple(shape))


@reads("aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(self: Operand, dim: int | Sequence[int]) -> Reshape:
    shape = operand(self, "the input").shape
    axes = {d % len(shape) for d in ((dim,) if isinstance(dim, int) else dim)}
    return Reshape(tuple(n for i, n in enumerate(shape) if i not in axes or n != 1))


@reads("aten.permute.default")
def permute(self: Operand, dims: Sequence[int]) -> Permute:
    return Permute(tuple(d % operand(self, "the input").ndim for d in dims))


@reads("aten.transpose.int")
def transpose(self: Operand, dim0: int, dim1: int) -> Permute:
    return swapped(self, dim0, dim1)


@reads("aten.t.default")
def t(self: Operand) -> Permute:
    if operand(self, "the input").ndim != 2:
        raise NotLinear(f"a transpose of shape {self.shape}")
    return swapped(self, 0, 1)


@reads("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(self: Operand, groups: int) -> Take:
    channels = operand(self, "the input").shape[1]
    each = channels // groups
    return Take(1, tuple(g * each + i for i in range(each) for g in range(groups)))


@reads("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(tensors: Sequence[Operand], dim: int = 0) -> Record:
    return joined(tensors, dim)
