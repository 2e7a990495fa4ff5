"""Which values become convolutions: never more work than before.

A *region* is the set of nodes between a source and a value that is an affine map of it. It may be replaced by one convolution only
where nothing outside reads its inside, or work would be done twice; whether it pays is decided by comparing it with every other
way to cut it: left alone, split at a value that every path crosses, or each operand on its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isclose, prod
from typing import Protocol, runtime_checkable

import torch

from unbranch.affine import ELEMENT, cost
from unbranch.fold.facts import Fact
from unbranch.fold.graph import Graph, Node
from unbranch.fold.interpret import Interpretation
from unbranch.ops import Identity, Map, Permute, Reshape, Slice, Write


@runtime_checkable
class Costs(Protocol):
    """What the planner compares, all in the same ``unit``."""

    unit: str

    def node(self, node: Node) -> float:
        """The price of a node as it stands."""
        ...

    def original(self, fact: Fact) -> float:
        """The price of a region as it stands."""
        ...

    def region(self, fact: Fact) -> float:
        """The price of one convolution in place of a region."""
        ...

    def ops(self, fact: Fact) -> int:
        """How many ops would be written for it, the views that are repeated behind it included."""
        ...


@dataclass
class WorkCosts:
    """The default: multiply-adds + kappa * elements moved, from the shapes alone.

    ``extra`` adds what a front end must put beside the convolution, such as a padding that its layer cannot do itself; ``made`` counts
    the ops that it then writes, the views behind them included.
    """

    graph: Graph
    extra: Callable[[Fact], float] = lambda fact: 0.0
    made: Callable[[Fact], int] = lambda fact: 1 + len(fact.pending)
    known: dict[int, float] = field(default_factory=dict)
    unit: str = "work"

    def node(self, node: Node) -> float:
        """Views are free; an op that moves elements costs that; a map costs what `cost` says."""
        if node.index not in self.known:
            self.known[node.index] = self._node(node)
        return self.known[node.index]

    def _node(self, node: Node) -> float:
        record = node.records[0]
        if isinstance(record, Reshape | Permute | Identity | Slice | Write):
            return 0.0
        read = sum(prod(self.graph.values[i].shape) for i in node.inputs)
        written = prod(self.graph.values[node.outputs[0]].shape)
        if isinstance(record, Map):
            geometry = self.graph.geometry_of(node)
            return cost(geometry, (written // max(geometry.out_channels, 1),))
        return ELEMENT * (read + written)

    def original(self, fact: Fact) -> float:
        """The sum of the nodes."""
        known = self.known
        return sum(
            known[index] if index in known else self.node(self.graph.nodes[index]) for index in fact.members
        )

    def region(self, fact: Fact) -> float:
        """One convolution from the source to the value."""
        written = prod(fact.shape)
        return cost(fact.geometry, (written // max(fact.geometry.out_channels, 1),)) + self.extra(fact)

    def ops(self, fact: Fact) -> int:
        """As the front end says."""
        return self.made(fact)


ROUNDING = 1e-9
"""Relative: prices are sums of a few floats, taken in different orders."""


@dataclass(slots=True, eq=False)
class Choice:
    """One way to compute a value: its price, how many ops that do anything, and the regions that become convolutions."""

    work: float
    ops: int
    regions: tuple[Fact, ...] = ()

    def beats(self, other: "Choice") -> bool:
        """Cheaper, or, at the same price up to the rounding of the sums, fewer ops."""
        if self.costs_as(other):
            return self.ops < other.ops
        return self.work < other.work

    def costs_as(self, other: "Choice") -> bool:
        """The price is the same."""
        return isclose(self.work, other.work, rel_tol=ROUNDING)

    def __add__(self, other: "Choice") -> "Choice":
        return Choice(self.work + other.work, self.ops + other.ops, self.regions + other.regions)


@dataclass
class Plan:
    """The regions to replace, last first, and what was left alone: (fact, why)."""

    regions: list[Fact] = field(default_factory=list)
    left: list[tuple[Fact, str]] = field(default_factory=list)


def plan(known: Interpretation, costs: Costs, check: Callable[[Sequence[Fact]], dict[int, str]]) -> Plan:
    """Choose the regions.

    ``check`` is shown what was chosen and returns why some of it, by ``id``, cannot be placed or must not be (an empty reason is not
    worth telling); then the rest is
    planned again without those, so that a region gives up what stands in the way rather than being lost whole.
    """
    barred: dict[int, str] = {}
    while True:
        chosen = _Planner(known, costs, barred).run()
        refused = check(chosen.regions) | _beyond_half(known.graph, chosen.regions)
        if not refused:
            return chosen
        barred |= refused


def _beyond_half(graph: Graph, facts: Sequence[Fact]) -> dict[int, str]:
    """The regions whose numbers, small as their parts may be, are too large for the float16 that would hold them."""
    refused, most = {}, torch.finfo(torch.float16).max
    for fact in facts:
        if graph.values[fact.value].dtype is torch.float16:
            made = fact.evaluate(graph.device)
            largest = max(float(n.abs().max()) for n in (made.weight, made.bias) if n is not None)
            if largest > most:
                refused[id(fact)] = (
                    f"exact as one {fact.geometry}, but its numbers reach {largest:.3g}, beyond float16"
                )
    return refused


class _Planner:
    def __init__(self, known: Interpretation, costs: Costs, barred: dict[int, str]) -> None:
        self.known, self.graph, self.costs, self.barred = known, known.graph, costs, barred
        self.choices: dict[int, Choice] = {}
        self.refused: dict[int, tuple[Fact, str]] = {}
        self.ops = [
            not isinstance(record, Identity) for node in self.graph.nodes for record in node.records[:1]
        ]

    def run(self) -> Plan:
        """Settle the nodes from the last to the first."""
        settled: set[int] = set()
        result = Plan()
        for node in reversed(self.graph.nodes):
            if node.index in settled:
                continue
            for output in node.outputs:
                fact = self._widest(output, settled)
                if fact is None:
                    continue
                regions = self._best(fact).regions
                settled = settled.union({node.index}, *(region.members for region in regions))
                result.regions.extend(regions)
        placed = {id(fact) for fact in result.regions}
        covered = frozenset().union(*(fact.members for fact in result.regions))
        told = [(f, why) for f, why in self.refused.values() if why and id(f) not in placed]
        left = [(f, why) for f, why in told if not f.members <= covered]
        result.left = _maximal(left)
        return result

    def _widest(self, value: int, settled: set[int]) -> Fact | None:
        """The closed region of most nodes that ends in ``value``."""
        facts = [f for f in self.known.facts.get(value, ()) if f.border is None and not f.members & settled]
        for fact in reversed(facts):
            if len(fact.members) > 1 and self._closed(fact) and self._has_channels(fact):
                return fact
        return None

    def _has_channels(self, fact: Fact) -> bool:
        """Some op of the region says which axis holds the channels; where all are numbers, it may be one that varies in length."""
        records = (record for i in fact.members for record in self.graph.nodes[i].records)
        return any(isinstance(record, Map) and record.axis is not None for record in records)

    def _closed(self, fact: Fact) -> bool:
        """Nothing outside the region reads its inside."""
        for index in fact.members:
            for output in self.graph.nodes[index].outputs:
                if output == fact.value:
                    continue
                if output in self.graph.kept or not fact.members.issuperset(
                    self.graph.readers.get(output, ())
                ):
                    return False
        return True

    def _best(self, fact: Fact) -> Choice:
        """The cheapest way to compute the fact's value from its source; the fewest ops among equals."""
        if id(fact) not in self.choices:
            best = self._original(fact)
            for option in (*self._splits(fact), *self._pieces(fact)):
                if option.beats(best):
                    best = option
            direct = self._direct(fact, best)
            self.choices[id(fact)] = best if direct is None else direct
        return self.choices[id(fact)]

    def _original(self, fact: Fact) -> Choice:
        return Choice(self.costs.original(fact), sum(map(self.ops.__getitem__, fact.members)))

    def _direct(self, fact: Fact, best: Choice) -> Choice | None:
        """One convolution, where that is allowed and pays."""
        if best.work == 0 or len(fact.members) < 2 or fact.border is not None:
            return None
        if not self._closed(fact) or not self._has_channels(fact):
            return None
        # Views that the value still stands in are repeated behind the convolution, so they are ops of either way.
        choice = Choice(self.costs.region(fact), self.costs.ops(fact), (fact,))
        if not choice.beats(best):
            if not choice.costs_as(best) and not best.regions:
                more = f"{100 * (choice.work / best.work - 1):.0f} % more {self.costs.unit}"
                self.refused[id(fact)] = fact, f"exact as one {fact.geometry}, but that is {more}"
            return None
        if id(fact) in self.barred:
            self.refused[id(fact)] = fact, self.barred[id(fact)]
            return None
        return choice

    def _splits(self, fact: Fact) -> list[Choice]:
        """The ways to go by a value that every path crosses."""
        options = []
        for upper in self.known.facts[fact.value]:
            if upper.source == fact.source or not upper.members < fact.members:
                continue
            for lower in self.known.facts.get(upper.source, ()):
                if lower.key == fact.key and lower.members == fact.members - upper.members:
                    options.append(self._best(upper) + self._best(lower))
        return options

    def _pieces(self, fact: Fact) -> list[Choice]:
        """The op at the end as it is, each of its operands on its own."""
        last = self.graph.producers[fact.value]
        parts = [part for part in fact.parts if part.members]
        if not parts or sum(len(part.members) for part in parts) != len(fact.members) - 1:
            return []
        work = self.costs.node(last)
        choice = Choice(work, self.ops[last.index])
        for part in parts:
            if part.value in self.known.facts:
                choice = choice + self._best(part)
        return [choice]


def _maximal(left: list[tuple[Fact, str]]) -> list[tuple[Fact, str]]:
    """Without the regions that lie within another."""
    return [(fact, why) for fact, why in left if not any(fact.members < other.members for other, _ in left)]
