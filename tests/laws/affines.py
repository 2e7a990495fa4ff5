"""Random affine maps for the laws: every rank, groups, strides, dilation, even kernels, borders of any kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from unbranch.affine import PADDING_MODES, Affine, NotLinear

CASES = settings(max_examples=100)
TOLERANCE = 1e-10


@dataclass(frozen=True)
class Shape:
    """What a drawn map must fit: the channels it reads, and those it writes where they are given."""

    rank: int
    into: int
    out: int | None = None


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    return Shape(draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4, 6])))


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Draw:
    """The integers of a map. The map itself is made in the test: the run-time type check draws random numbers, which no strategy may."""

    groups: int
    out: int
    into: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    mode: str
    transposed: bool
    biased: bool
    seed: int

    def affine(self) -> Affine:
        weight = numbers(
            self.seed, self.groups, self.out // self.groups, self.into // self.groups, *self.kernel
        )
        bias = numbers(self.seed + 1, self.out) if self.biased else None
        return Affine(weight, bias, self.stride, self.padding, self.dilation, self.mode, self.transposed)


@st.composite
def affines(
    draw: st.DrawFn,
    shape: Shape,
    *,
    stride: Sequence[int] | None = None,
    slack: Sequence[int] | None = None,
    mode: str | None = None,
    transposed: bool | None = None,
    biased: bool | None = None,
    flavours: Sequence[str] = ("any",),
) -> Draw:
    """A map that reads ``shape.into`` channels.

    ``slack`` fixes before + after - dilation * (kernel - 1) on each axis, so that maps can be added. ``flavours`` are "any",
    "pointwise" and "unpadded": without the last two, nearly every chain of drawn maps would be refused at its border.
    """
    rank, into = shape.rank, shape.into
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 6) if into % g == 0]))
    if shape.out is not None:
        groups = draw(st.sampled_from([g for g in (1, 2, 3, 6) if into % g == 0 and shape.out % g == 0]))
    out = shape.out or groups * draw(st.integers(1, 3))
    flavour = draw(st.sampled_from(flavours))
    turned = flavour == "any" and draw(st.integers(0, 3)) == 0 if transposed is None else transposed
    one = flavour == "pointwise"
    kernel = [1 if one else draw(st.integers(1, 4)) for _ in range(rank)]
    dilation = [draw(st.integers(1, 3)) for _ in range(rank)]
    strides = [1 if one else draw(st.integers(1, 3)) for _ in range(rank)]
    sides = {"any": pairs(-1, 3), "unpadded": pairs(-1, 0), "pointwise": st.just((0, 0))}[flavour]
    padding = [draw(sides) for _ in range(rank)]
    if slack is not None:
        padding = [
            (before, s + d * (k - 1) - before)
            for (before, _), s, d, k in zip(padding, slack, dilation, kernel, strict=True)
        ]
    border = draw(st.sampled_from(PADDING_MODES)) if mode is None else mode
    if turned or any(side < 0 for pair in padding for side in pair):
        border = "zeros"
    return Draw(
        groups,
        out,
        into,
        tuple(kernel),
        tuple(strides if stride is None else stride),
        tuple(padding),
        tuple(dilation),
        border,
        turned,
        draw(st.booleans()) if biased is None else biased,
        draw(st.integers(0, 2**20)),
    )


def inputs_for(shape: Shape, *chain: Affine) -> Tensor:
    """A batch just large enough for every map of a chain, and with no two axes alike."""
    sizes = []
    for axis in range(shape.rank):
        size = 6 + axis
        while not _fits(size, axis, chain):
            size += 1
        sizes.append(size)
    return numbers(0, 2, shape.into, *sizes)


def _fits(size: int, axis: int, chain: Sequence[Affine]) -> bool:
    """Every value on the way has a few entries along the axis, and more than a border that mirrors it takes."""
    for affine in chain:
        if size < 4 or size <= max(affine.padding[axis]):
            return False
        size = affine.geometry.output_size((size,) * affine.rank)[axis]
    return size >= 4


def agree(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape
    assert b.numel() > 0, "the law was tried on nothing"
    assert float((a - b).abs().max()) <= TOLERANCE * max(1.0, float(b.abs().max()))


class Accepted:
    """Counts what a law was tried on and what was refused, so that it cannot pass by refusing everything."""

    def __init__(self) -> None:
        self.tried = self.held = 0

    def __call__(self, build: Callable[[], Affine]) -> Affine | None:
        self.tried += 1
        try:
            made = build()
        except NotLinear:
            return None
        self.held += 1
        return made

    def at_least(self, share: float) -> None:
        assert self.tried >= 100, f"only {self.tried} cases drawn"
        assert self.held >= share * self.tried, f"{self.held} of {self.tried} accepted"
