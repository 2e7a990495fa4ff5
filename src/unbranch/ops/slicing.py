"""Parts of a value: slices, chunks, gathers, and a constant written into a slab of it."""

from collections.abc import Sequence

from torch import Tensor

from unbranch.affine import NotLinear
from unbranch.ops.table import Operand, Slice, Take, Write, constant, operand, reads

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
def slice_tensor(self: Operand, dim: int = 0, start=None, end=None, step: int = 1) -> Slice:
    return sliced(self, dim, start, end, step)


@reads("aten.narrow.default")
def narrow(self: Operand, dim: int, start: int, length: int) -> Slice:
    return sliced(self, dim, start, start + length, 1)


@reads("aten.split.Tensor")
def split(self: Operand, split_size: int, dim: int = 0) -> tuple[Slice, ...]:
    return even_pieces(self, split_size, dim)


@reads("aten.split_with_sizes.default", "aten.split.sizes")
def split_with_sizes(self: Operand, split_sizes: Sequence[int], dim: int = 0) -> tuple[Slice, ...]:
    return pieces(self, split_sizes, dim)


@reads("aten.chunk.default")
def chunk(self: Operand, chunks: int, dim: int = 0) -> tuple[Slice, ...]:
    length = operand(self, "the input").shape[dim]
    return even_pieces(self, max(1, -(-length // chunks)), dim)


@reads("aten.index_select.default")
def index_select(self: Operand, dim: int, index: Tensor) -> Take:
    chosen = constant(index, "the index").flatten().tolist()
    return Take(dim % operand(self, "the input").ndim, tuple(chosen))


@reads("aten.index.Tensor")
def index(self: Operand, indices: Sequence[Tensor | None]) -> Take:
    operand(self, "the input")
    given = [(axis, at) for axis, at in enumerate(indices) if at is not None]
    if len(given) != 1 or constant(given[0][1], "the index").ndim != 1 or given[0][1].is_floating_point():
        raise NotLinear("an index that is not one list of positions along one axis")
    axis, at = given[0]
    size = self.shape[axis]
    chosen = at.nonzero().flatten() if at.element_size() == 1 else at % size
    return Take(axis, tuple(chosen.tolist()))


@reads("aten.slice_scatter.default")
def slice_scatter(self: Operand, src: Tensor, dim: int = 0, start=None, end=None, step: int = 1) -> Write:
    value = operand(self, "the input")
    if step != 1:
        raise NotLinear(f"a write with step {step}")
    constant(src, "what is written")
    return Write(dim % value.ndim, start or 0, None if end is None or end >= _END else end, src)
