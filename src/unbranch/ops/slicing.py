"""Parts of a value: slices, chunks, gathers, and a constant written into a slab of it."""

from collections.abc import Sequence
from typing import Any

import torch

from unbranch.affine import NotLinear
from unbranch.ops.table import (
    Argument,
    Identity,
    Operand,
    Record,
    Slice,
    Take,
    Write,
    axis_of,
    constant,
    integers,
    operand,
    reads,
)

_END = 2**31 - 1


def sliced(x: Operand, axis: int, start: int | None, stop: int | None, step: int) -> Slice:
    """``x[start:stop:step]`` along ``axis``."""
    value = operand(x, "the input")
    axis %= value.ndim
    if step < 1:
        raise NotLinear(f"a slice with step {step}")
    return Slice(axis, start or 0, None if stop is None or stop >= _END else stop, step)


def pieces(x: Operand, sizes: Sequence[int], axis: int) -> tuple[Slice, ...]:
    """Consecutive slices of the given sizes."""
    value = operand(x, "the input")
    axis %= value.ndim
    records, start = [], 0
    for size in sizes:
        records.append(Slice(axis, start, start + size))
        start += size
    return tuple(records)


def even_pieces(x: Operand, size: int, axis: int) -> tuple[Slice, ...]:
    """Slices of one size; the last may be smaller."""
    length = operand(x, "the input").shape[axis]
    return pieces(x, [min(size, length - at) for at in range(0, length, size)], axis)


@reads("aten.slice.Tensor")
def slice_tensor(self: Any, dim: int = 0, start=None, end=None, step: int = 1) -> Slice:
    return sliced(self, dim, start, end, step)


@reads("aten.narrow.default")
def narrow(self: Any, dim: int, start: int, length: int) -> Slice:
    stop = start + length
    return sliced(self, dim, start, None if start < 0 and stop == 0 else stop, 1)


@reads("aten.split.Tensor", "aten.unsafe_split.Tensor")
def split(self: Any, split_size: int, dim: int = 0) -> tuple[Slice, ...]:
    return even_pieces(self, split_size, dim)


@reads("aten.split.sizes")
def split_sizes(self: Any, split_size: Sequence[int], dim: int = 0) -> tuple[Slice, ...]:
    return pieces(self, split_size, dim)


@reads("aten.split_with_sizes.default", "aten.unsafe_split_with_sizes.default")
def split_with_sizes(self: Any, split_sizes: Sequence[int], dim: int = 0) -> tuple[Slice, ...]:
    return pieces(self, split_sizes, dim)


@reads("aten.chunk.default", "aten.unsafe_chunk.default")
def chunk(self: Any, chunks: int, dim: int = 0) -> tuple[Slice, ...]:
    length = operand(self, "the input").shape[dim]
    return even_pieces(self, max(1, -(-length // chunks)), dim)


@reads("aten.tensor_split.sections")
def tensor_split(self: Any, sections: int, dim: int = 0) -> tuple[Slice, ...]:
    length = operand(self, "the input").shape[dim]
    return pieces(self, [length // sections + (i < length % sections) for i in range(sections)], dim)


@reads("aten.index_select.default")
def index_select(self: Any, dim: int, index: Any) -> Take:
    chosen = constant(index, "the index").flatten().tolist()
    return Take(axis_of(operand(self, "the input"), dim), tuple(chosen))


@reads("aten.index.Tensor")
def index(self: Any, indices: Sequence[Any]) -> Take:
    operand(self, "the input")
    given = [(axis, at) for axis, at in enumerate(indices) if at is not None]
    if len(given) != 1 or constant(given[0][1], "the index").ndim != 1 or given[0][1].is_floating_point():
        raise NotLinear("an index that is not one list of positions along one axis")
    axis, at = given[0]
    size = self.shape[axis]
    chosen = at.nonzero().flatten() if at.element_size() == 1 else at % size
    return Take(axis, tuple(chosen.tolist()))


@reads("aten.slice_scatter.default")
def slice_scatter(self: Any, src: Any, dim: int = 0, start=None, end=None, step: int = 1) -> Write:
    value = operand(self, "the input")
    if step != 1:
        raise NotLinear(f"a write with step {step}")
    constant(src, "what is written")
    return Write(dim % value.ndim, start or 0, None if end is None or end >= _END else end, src)


@reads("aten.select_scatter.default")
def select_scatter(self: Any, src: Any, dim: int, index: int) -> Write:
    value = operand(self, "the input")
    axis, after = dim % value.ndim, value.ndim - dim % value.ndim - 1
    source = constant(src, "what is written")
    source = source.unsqueeze(source.ndim - after) if source.ndim >= after else source
    return Write(axis, index, None if index == -1 else index + 1, source)


@reads("onnx.Slice")
def onnx_slice(
    data: Argument,
    starts: Argument,
    ends: Argument,
    axes: Argument = None,
    steps: Argument = None,
) -> Record:
    """Bounds are counted from the nearer end, so that the same slice reads alike at every size."""
    shape = operand(data, "the input").shape
    first, last = integers(starts, "the starts"), integers(ends, "the ends")
    where = list(range(len(first))) if axes is None else integers(axes, "the axes")
    step = [1] * len(first) if steps is None else integers(steps, "the steps")
    found = []
    for start, stop, axis, by in zip(first, last, where, step, strict=True):
        size = shape[axis]
        if by < 1:
            raise NotLinear(f"a slice with step {by}")
        begin, end, _ = slice(start, stop).indices(size)
        if (begin, end, by) != (0, size, 1):
            from_end = None if end >= size else end - size
            found.append(Slice(axis % len(shape), begin, end if axis % len(shape) == 1 else from_end, by))
    if len(found) > 1:
        raise NotLinear(f"a slice along {len(found)} axes at once")
    return found[0] if found else Identity()


@reads("onnx.Split")
def onnx_split(
    input: Argument, split: Argument = None, *, axis: int = 0, num_outputs: int | None = None
) -> tuple[Slice, ...]:
    if split is not None:
        return pieces(operand(input, "the input"), integers(split, "the sizes"), axis)
    value = operand(input, "the input")
    if num_outputs is None:
        raise NotLinear("a split without sizes or their number")
    return even_pieces(value, -(-value.shape[axis] // num_outputs), axis)


@reads("onnx.SplitToSequence")
def onnx_split_to_sequence(
    input: Argument, split: Argument = None, *, axis: int = 0, keepdims: int = 1
) -> tuple[Slice, ...]:
    """What is taken from the sequence, in order."""
    value, sizes = operand(input, "the input"), constant(split, "the sizes")
    if sizes is None:
        raise NotLinear("a split into single entries")
    return even_pieces(value, int(sizes), axis) if sizes.ndim == 0 else pieces(value, sizes.tolist(), axis)


@reads("onnx.Gather")
def onnx_gather(data: Argument, indices: Argument, *, axis: int = 0) -> Take:
    shape = operand(data, "the input").shape
    chosen = constant(indices, "the indices")
    if chosen.ndim != 1:
        raise NotLinear(f"a gather by indices of shape {tuple(chosen.shape)}")
    return Take(axis % len(shape), tuple((chosen % shape[axis]).tolist()))


@reads("onnx.ScatterND")
def onnx_scatter_nd(
    data: Argument, indices: Argument, updates: Argument, *, reduction: str = "none"
) -> Write:
    """A write whose positions fill a slab across one axis, in order: what assignment to a slice is exported to.

    A slab that reaches the end is counted from there, so that it reads alike at every size.
    """
    shape = operand(data, "the input").shape
    value, at = constant(updates, "what is written"), constant(indices, "the indices")
    if reduction != "none":
        raise NotLinear(f"a scatter that reduces by {reduction}")
    depth = at.shape[-1]
    points = at.reshape(-1, depth) % torch.tensor(shape[:depth])
    low, high = points.amin(0), points.amax(0)
    spans = (high - low + 1).tolist()
    box = torch.cartesian_prod(*(torch.arange(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)))
    if not torch.equal(box.reshape(-1, depth), points):
        raise NotLinear("a scatter to positions that are no slab")
    partial = [axis for axis in range(depth) if spans[axis] != shape[axis]]
    if len(partial) != 1:
        raise NotLinear(f"a scatter into a box that is partial along {len(partial)} axes")
    axis = partial[0]
    start, stop = int(low[axis]), int(high[axis]) + 1
    slab = value.reshape(*spans, *shape[depth:])
    return (
        Write(axis, start - shape[axis], None, slab)
        if stop == shape[axis]
        else Write(axis, start, stop, slab)
    )
