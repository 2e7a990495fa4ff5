"""What is known of a value: it is this affine map of that earlier value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from unbranch.affine import Affine, Geometry, add, compose, concat, select
from unbranch.fold.border import Border
from unbranch.fold.layout import Layout

Rule: TypeAlias = Callable[..., Affine]


@dataclass(frozen=True, eq=False)
class Fact:
    """``value = map(source)``, its geometry known and its numbers computed on demand.

    ``axis`` is the source's channel axis. ``members`` are the nodes on the way. ``layout`` is set while the elements stand in another
    arrangement than the map's own output, and ``pending`` then lists the nodes that moved them. ``border`` is set while a border
    is being written, ``past`` right after, for the writes that say once more what it holds already. ``rule`` makes the map's numbers of
    those of ``parts``, or of ``terms`` where these are others.
    """

    value: int
    source: int
    axis: int
    geometry: Geometry
    shape: tuple[int, ...]
    members: frozenset[int] = frozenset()
    pending: tuple[int, ...] = ()
    layout: Layout | None = None
    border: Border | None = None
    past: Border | None = None
    parts: tuple["Fact", ...] = ()
    rule: Rule | None = field(default=None, repr=False)
    terms: tuple["Fact", ...] | None = field(default=None, repr=False)

    @property
    def key(self) -> tuple[int, int]:
        """What it is a map of."""
        return self.source, self.axis

    @property
    def is_start(self) -> bool:
        """The value as a map of itself: where a chain begins."""
        return self.rule is None

    @property
    def is_plain(self) -> bool:
        """The value is the map's output as it stands."""
        return self.layout is None and self.border is None

    @torch.no_grad()
    def evaluate(self, device: torch.device) -> Affine:
        """The numbers, in float64. A layer's own stay as they are until they first meet others."""
        return self._evaluated(device, {}).to(torch.float64)

    def _evaluated(self, device: torch.device, memo: dict[int, Affine]) -> Affine:
        known = memo.get(id(self))
        if known is None:
            terms = self.parts if self.terms is None else self.terms
            known = (
                self._identity(device)
                if self.rule is None
                else self.rule(*[t._evaluated(device, memo) for t in terms])
            )
            memo[id(self)] = known
        return known

    def _identity(self, device: torch.device) -> Affine:
        return Affine.identity(self.geometry.in_channels, self.geometry.rank).to(device)


def identity_fact(value: int, shape: tuple[int, ...], axis: int) -> Fact:
    """``value = value``: where every chain begins. A value whose channels come last is a map over channels alone."""
    rank = len(shape) - 2 if axis == 1 else 0
    channels = shape[axis]
    geometry = Geometry(
        in_channels=channels,
        out_channels=channels,
        groups=channels,
        kernel=(1,) * rank,
        stride=(1,) * rank,
        padding=((0, 0),) * rank,
        dilation=(1,) * rank,
    )
    return Fact(value, value, axis, geometry, shape)


def unchanged(part: Affine) -> Affine:
    """The rule of an op that computes nothing."""
    return part


def chained(first: Affine, second: Affine) -> Affine:
    """`compose` in float64. A product widens as it goes, which spares a diagonal map a pass over the weights."""
    if not second.geometry.is_diagonal:
        first = first.to(torch.float64)
    return compose(first, second.to(torch.float64, first.weight.device))


def composing(second: Affine) -> Callable[[Affine], Affine]:
    """The rule that puts ``second`` behind its part."""
    return lambda first: chained(first, second)


MOST_TERMS = 32
"""Sums of sums are added up in one go, as long as they have no more terms than this."""


@dataclass(frozen=True, eq=False)
class Summing:
    """The rule that adds its terms, each with its factor."""

    factors: tuple[float, ...]

    def __call__(self, *terms: Affine) -> Affine:
        """The sum."""
        wide = (term.to(torch.float64) for term in terms)
        return add(*(term if f == 1 else _times(term, f) for term, f in zip(wide, self.factors, strict=True)))


def summed(parts: Sequence[Fact], factors: Sequence[float]) -> tuple[tuple[Fact, ...], Summing]:
    """The terms of a sum of ``parts`` and its rule; the terms of the sums among the parts are its own."""
    terms: list[tuple[Fact, float]] = []
    for part, factor in zip(parts, factors, strict=True):
        inner = part.terms or ()
        if isinstance(part.rule, Summing) and len(inner) + len(terms) < MOST_TERMS:
            terms += zip(inner, (factor * f for f in part.rule.factors), strict=True)
        else:
            terms.append((part, factor))
    return tuple(term for term, _ in terms), Summing(tuple(factor for _, factor in terms))


def _times(part: Affine, factor: float) -> Affine:
    bias = None if part.bias is None else part.bias * factor
    return replace(part, weight=part.weight * factor, bias=bias)


def stacking(*parts: Affine) -> Affine:
    """The rule that stacks its parts' channels."""
    return concat(*parts)


def selecting(channels: tuple[int, ...]) -> Callable[[Affine], Affine]:
    """The rule that keeps some of its part's channels."""
    return lambda part: select(part, channels)


def padding_with_bias(border: Affine) -> Callable[[Affine], Affine]:
    """The rule that pads its part with what the part's bias is there."""

    def rule(part: Affine) -> Affine:
        padded = chained(replace(part, bias=None), border)
        return replace(padded, bias=part.bias)

    return rule
