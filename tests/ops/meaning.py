"""What a record says, in plain torch: the oracle that every reader of every spelling is held against."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unbranch.affine import apply
from unbranch.ops import (
    Concat,
    Identity,
    Map,
    Pad,
    Permute,
    Record,
    Reshape,
    Slice,
    Sum,
    Take,
    Write,
)


def meaning(record: Record, operands: Sequence[Tensor]) -> Tensor:
    """The value of an op with this record on these operands."""
    x = operands[0]
    match record:
        case Map():
            value = _mapped(record, x)
        case Sum(factors):
            value = torch.stack([f * o for f, o in zip(factors, operands, strict=True)]).sum(0)
        case Concat(axis):
            value = torch.cat(list(operands), axis)
        case Slice(axis, start, stop, step):
            value = x[(slice(None),) * axis + (slice(start, stop, step),)]
        case Take(axis, indices):
            value = x.index_select(axis, torch.tensor(indices, dtype=torch.int64))
        case Reshape(shape):
            value = x.reshape(shape)
        case Permute(axes):
            value = x.permute(axes)
        case Identity():
            value = x
        case Pad(pads):
            value = _padded(record, [side for pair in reversed(pads) for side in pair], x)
        case Write(axis, start, stop, slab):
            value = x.clone()
            value[(slice(None),) * axis + (slice(start, stop),)] = slab.to(x)
        case _:
            raise AssertionError(f"no meaning for {type(record).__name__}")
    return value


def _padded(record: Pad, sides: list[int], x: Tensor) -> Tensor:
    if not isinstance(record.value, Tensor):
        return F.pad(x, sides, value=float(record.value))
    fill = record.value[tuple(slice(None) if axis == 1 else slice(0, 1) for axis in range(x.ndim))]
    inside = F.pad(torch.ones_like(x, dtype=torch.bool), sides, value=False)
    return torch.where(inside, F.pad(x, sides), fill)


def _mapped(record: Map, x: Tensor) -> Tensor:
    axis = 1 if record.axis is None else record.axis % x.ndim
    affine = record.affine(x.shape[axis]).to(torch.float64)
    if affine.rank == 0:
        rows = x.movedim(axis, -1)
        return apply(affine, rows.reshape(-1, rows.shape[-1])).reshape(*rows.shape[:-1], -1).movedim(-1, axis)
    return apply(affine, x)
