"""How a tensor's elements are arranged: which piece of which original axis each of its axes walks through.

Reshapes and permutations move elements and compute nothing, so an affine map passes through them as long as its channel axis can
still be found. An axis is a tuple of *atoms*, outermost first; an atom ``(axis, stride, size)`` walks ``size`` steps of ``stride``
along one axis of the original shape. A channel shuffle is a split, a swap and a merge that end in the original arrangement with the
channels permuted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Self

from unbranch.affine import NotLinear

Atom = tuple[int, int, int]
Axis = tuple[Atom, ...]


@dataclass(frozen=True)
class Layout:
    """The arrangement of a tensor relative to ``shape``, its original form."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]

    @classmethod
    def original(cls, shape: Sequence[int]) -> Self:
        """Nothing moved yet."""
        return cls(tuple(shape), tuple(_axis([(i, 1, n)]) for i, n in enumerate(shape)))

    @property
    def is_original(self) -> bool:
        """Every axis is where it was."""
        return self == Layout.original(self.shape)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The tensor's own shape."""
        return tuple(prod(size for _, _, size in axis) for axis in self.axes)

    def permute(self, order: Sequence[int]) -> Self:
        """The axes in another order."""
        return type(self)(self.shape, tuple(self.axes[i] for i in order))

    def resized(self, axis: int, size: int) -> Self:
        """The original ``axis``, which stands whole along one axis, with ``size`` entries."""
        at = self.index_of(axis)
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        return type(self)(shape, (*self.axes[:at], _axis([(axis, 1, size)]), *self.axes[at + 1 :]))

    def reshape(self, sizes: Sequence[int]) -> Self:
        """The same elements in the same order under other sizes.

        Raises:
            NotLinear: an axis would begin or end in the middle of an atom.
        """
        if 0 in self.shape:
            raise NotLinear(f"a tensor of shape {self.shape} holds nothing")
        atoms = [atom for axis in self.axes for atom in axis]
        axes = []
        for size in sizes:
            axis, missing = [], size
            while missing > 1:
                if not atoms:
                    raise NotLinear(f"a reshape to {tuple(sizes)} of {self.shape}")
                source, stride, extent = atoms.pop(0)
                if missing % extent == 0:
                    axis.append((source, stride, extent))
                    missing //= extent
                elif extent % missing == 0:
                    inner = extent // missing
                    axis.append((source, stride * inner, missing))
                    atoms.insert(0, (source, stride, inner))
                    missing = 1
                else:
                    raise NotLinear(f"a reshape to {tuple(sizes)} that mixes axes of {self.shape}")
            axes.append(_axis(axis))
        if atoms:
            raise NotLinear(f"a reshape to {tuple(sizes)} of {self.shape}")
        return type(self)(self.shape, tuple(axes))

    def position_of(self, axis: int) -> int | None:
        """Which axis of the tensor is the original ``axis``, whole and in order."""
        whole = _axis([(axis, 1, self.shape[axis])])
        if not whole:
            same = Layout.original(self.shape).axes == self.axes
            return axis if same else None
        return self.axes.index(whole) if whole in self.axes else None

    def origin_of(self, position: int) -> int | None:
        """Which original axis, whole and in order, axis ``position`` of the tensor is."""
        if self.is_original:
            return position
        return next((i for i in range(len(self.shape)) if self.position_of(i) == position), None)

    def index_of(self, axis: int) -> int:
        """Where the original ``axis`` stands; where it has one entry, any axis of size one will do.

        Raises:
            NotLinear: it does not stand whole and in order along one axis.
        """
        found = self.position_of(axis)
        if found is None and self.shape[axis] == 1 and () in self.axes:
            found = self.axes.index(())
        if found is None:
            raise NotLinear(f"axis {axis} of {self.shape} does not stand along one axis")
        return found

    def permutation_of(self, axis: int) -> tuple[int, ...] | None:
        """The order of ``axis``'s entries, where that is all that differs from the original."""
        original = Layout.original(self.shape).axes
        if len(original) != len(self.axes):
            return None
        if any(a != b for i, (a, b) in enumerate(zip(original, self.axes, strict=True)) if i != axis):
            return None
        atoms = self.axes[axis]
        steps = product(*(range(0, stride * size, stride) for _, stride, size in atoms))
        return tuple(sum(step) for step in steps)


def _axis(atoms: Sequence[Atom]) -> Axis:
    """Without atoms of size one, and with neighbours joined that continue each other."""
    joined: list[Atom] = []
    for source, stride, size in atoms:
        if size == 1:
            continue
        if joined and joined[-1][0] == source and joined[-1][1] == stride * size:
            joined[-1] = (source, stride, joined[-1][2] * size)
        else:
            joined.append((source, stride, size))
    return tuple(joined)
