"""A map over channels alone is written as a matrix product, which takes all channels at once: what that costs beyond its groups."""

from dataclasses import replace
from math import prod

from unbranch.fold.facts import Fact
from unbranch.fold.report import Totals
from unbranch.fold.totals import totals_of_map


def dense_work(fact: Fact) -> float:
    """The multiply-adds with the zeros between groups, which a scale and a shift of C channels have C - 1 of C times."""
    g = fact.geometry
    return float(prod(fact.shape) * (g.in_channels - g.in_channels // g.groups)) if g.rank == 0 else 0.0


def totals_written(fact: Fact) -> Totals:
    """Of the map as it is written."""
    g = fact.geometry
    return totals_of_map(replace(fact, geometry=g._replace(groups=1)) if g.rank == 0 else fact)
