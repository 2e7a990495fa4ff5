"""Borders that hold a constant: when is ``pad(W x + b)`` the same as ``W pad(x) + b``?

Exactly when every cell of the border holds b. Multi-branch blocks fill it so, often side by side: first a pad with zeros, then one
write for each edge. Until the last write the value is no affine map of anything; a `Border` remembers what has been written so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from unbranch.affine import NotLinear

ULPS = 8
"""How far a written constant may lie from the bias it stands for, in units in the last place of the stored type."""


@dataclass(frozen=True, eq=False)
class Border:
    """``pads`` per spatial axis; ``cells`` says who wrote each cell last, the inside collapsed to one, -1 for nobody."""

    pads: tuple[tuple[int, int], ...]
    cells: Tensor
    written: tuple[Tensor, ...] = field(default=())

    @classmethod
    def filled(cls, pads: Sequence[tuple[int, int]], value: Tensor) -> Self:
        """A border that holds ``value``, one entry per channel, everywhere."""
        cells = torch.zeros([before + 1 + after for before, after in pads], dtype=torch.int64)
        cells[tuple(before for before, _ in pads)] = -1
        return cls(tuple(pads), cells, (value,))

    def write(self, axis: int, start: int, stop: int | None, size: int, value: Tensor) -> Self:
        """``[start:stop]`` along spatial ``axis``, of padded length ``size``, set to ``value``.

        Raises:
            NotLinear: the slab reaches inside, or would at another size, where it is counted from the far end.
        """
        before, after = self.pads[axis]
        first = start + size if start < 0 else start
        last = size if stop is None else stop + size if stop < 0 else min(stop, size)
        inside = range(before, size - after)
        if first >= last or (first < inside.stop and last > inside.start):
            raise NotLinear(
                f"a write to [{first}:{last}] of {size}, which is not within the border {self.pads[axis]}"
            )
        far = first >= inside.stop
        if (start < 0) != far or (stop is not None and (stop < 0) != far):
            raise NotLinear(f"a write to [{start}:{stop}], whose place in the border depends on the size")
        shrink = len(inside) - 1
        at = slice(first - shrink, last - shrink) if far else slice(first, last)
        cells = self.cells.clone()
        cells[(slice(None),) * axis + (at,)] = len(self.written)
        return replace(self, cells=cells, written=(*self.written, value))

    def holds(self, bias: Tensor) -> bool:
        """Every cell holds ``bias``, within `ULPS`."""
        used = set(self.cells.unique().tolist()) - {-1}
        return all(same_constant(self.written[i], bias) for i in used)


def same_constant(stored: Tensor, exact: Tensor) -> bool:
    """The vectors are equal within `ULPS` of the stored type, measured at their largest entry."""
    exact = exact.detach()
    wide = stored.detach().double().to(exact.device)
    scale = max(float(wide.abs().max()), float(exact.abs().max()))
    return float((wide - exact).abs().max()) <= ULPS * torch.finfo(stored.dtype).eps * scale


def per_channel(value: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    """``value`` as one entry for each of the channels along ``axis`` of ``shape``, to which it broadcasts.

    Raises:
        NotLinear: it differs from position to position.
    """
    lead = (1,) * (len(shape) - value.ndim)
    wide = value.reshape(*lead, *value.shape)
    index = tuple(slice(None) if i == axis else slice(0, 1) for i in range(len(shape)))
    column = wide[index]
    if wide.numel() != column.numel() and not bool((wide == column).all()):
        raise NotLinear("what is written into the border differs from position to position")
    return column.flatten().expand(shape[axis])
