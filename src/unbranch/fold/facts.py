"""What is known of a value: it is this affine map of that earlier value."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from unbranch.affine import Affine, Geometry, add_geometry, add_up, compose, concat, identity_geometry, select
from unbranch.fold.border import Border
from unbranch.fold.layout import Layout

Rule: TypeAlias = Callable[[Iterable[Affine]], Affine]


@dataclass(slots=True, eq=False)
class Fact:
    """``value = map(source)``, its geometry known and its numbers computed on demand. Never changed once made.

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

    @property
    def operands(self) -> tuple["Fact", ...]:
        """The facts whose numbers the rule takes."""
        return self.parts if self.terms is None else self.terms

    @torch.no_grad()
    def evaluate(self, device: torch.device) -> Affine:
        """The numbers, in float64. A layer's own stay as they are until they first meet others."""
        return _Evaluation(self, device).of(self).to(torch.float64)


class _Evaluation:
    """Works out the numbers of one fact; what several others take is worked out once, and nothing is held that is not taken again."""

    def __init__(self, fact: Fact, device: torch.device) -> None:
        self.device = device
        self.known: dict[int, Affine] = {}
        self.takers = Counter[int]()
        self._count(fact)

    def _count(self, fact: Fact) -> None:
        self.takers[id(fact)] += 1
        if self.takers[id(fact)] == 1:
            for operand in fact.operands:
                self._count(operand)

    def of(self, fact: Fact) -> Affine:
        """The numbers of a fact, for one of its takers."""
        made = self.known.pop(id(fact), None) or self._made(fact)
        self.takers[id(fact)] -= 1
        if self.takers[id(fact)]:
            self.known[id(fact)] = made
        return made

    def _made(self, fact: Fact) -> Affine:
        if fact.rule is None:
            return Affine.identity(fact.geometry.in_channels, fact.geometry.rank).to(self.device)
        return fact.rule(self.of(operand) for operand in fact.operands)


def identity_fact(value: int, shape: tuple[int, ...], axis: int) -> Fact:
    """``value = value``: where every chain begins. A value whose channels come last is a map over channels alone."""
    geometry = identity_geometry(shape[axis], len(shape) - 2 if axis == 1 else 0)
    return Fact(value, value, axis, geometry, shape)


def unchanged(parts: Iterable[Affine]) -> Affine:
    """The rule of an op that computes nothing."""
    (part,) = parts
    return part


def chained(first: Affine, second: Affine) -> Affine:
    """`compose` in float64. A product widens as it goes, which spares a diagonal map a pass over the weights."""
    if not second.geometry.is_diagonal:
        first = first.to(torch.float64)
    return compose(first, second.to(torch.float64, first.weight.device))


@dataclass(frozen=True, eq=False)
class Composing:
    """The rule that puts ``second`` behind its part."""

    second: Affine

    def __call__(self, parts: Iterable[Affine]) -> Affine:
        """The composition."""
        (first,) = parts
        return chained(first, self.second)


MOST_TERMS = 32
"""Sums of sums are added up in one go, as long as they have no more terms than this."""


@dataclass(frozen=True, eq=False)
class Summing:
    """The rule that adds its terms, each with a diagonal map behind it where there is one."""

    geometry: Geometry
    behind: tuple[Affine | None, ...]

    def __call__(self, terms: Iterable[Affine]) -> Affine:
        """The sum."""
        pairs = zip(terms, self.behind, strict=True)
        return add_up(self.geometry, (_widened(term, last) for term, last in pairs))


def _widened(term: Affine, last: Affine | None) -> tuple[Affine, Affine | None]:
    """In float64, the term itself only where nothing behind it widens the product."""
    if last is None:
        return term.to(torch.float64), None
    return term, last.to(torch.float64, term.weight.device)


def summed(parts: Sequence[Fact], factors: Sequence[float]) -> tuple[tuple[Fact, ...], Summing]:
    """The terms of a sum of ``parts`` and its rule.

    The terms of the sums among the parts are its own, and a norm at the end of a part is left to the sum.
    """
    terms: list[tuple[Fact, Affine | None]] = []
    for part, factor in zip(parts, factors, strict=True):
        inner = part.terms or ()
        if isinstance(part.rule, Summing) and len(inner) + len(terms) < MOST_TERMS:
            behind = (_times(fact, last, factor) for fact, last in zip(inner, part.rule.behind, strict=True))
            terms += zip(inner, behind, strict=True)
        elif isinstance(part.rule, Composing) and part.rule.second.geometry.is_diagonal:
            (head,) = part.operands
            terms.append((head, _times(head, part.rule.second, factor)))
        else:
            terms.append((part, _times(part, None, factor)))
    rule = Summing(add_geometry([part.geometry for part in parts]), tuple(last for _, last in terms))
    return tuple(fact for fact, _ in terms), rule


def _times(fact: Fact, last: Affine | None, factor: float) -> Affine | None:
    """``factor * last``, a diagonal map behind ``fact``."""
    if factor == 1:
        return last
    if last is None:
        last = Affine.identity(fact.geometry.out_channels, fact.geometry.rank)
    bias = None if last.bias is None else last.bias * factor
    return replace(last, weight=last.weight * factor, bias=bias)


def stacking(parts: Iterable[Affine]) -> Affine:
    """The rule that stacks its parts' channels."""
    return concat(*parts)


def selecting(channels: tuple[int, ...]) -> Rule:
    """The rule that keeps some of its part's channels."""

    def rule(parts: Iterable[Affine]) -> Affine:
        (part,) = parts
        return select(part, channels)

    return rule


def padding_with_bias(border: Affine) -> Rule:
    """The rule that pads its part with what the part's bias is there."""

    def rule(parts: Iterable[Affine]) -> Affine:
        (part,) = parts
        padded = chained(replace(part, bias=None), border)
        return replace(padded, bias=part.bias)

    return rule
