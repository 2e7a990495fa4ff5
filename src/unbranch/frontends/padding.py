"""What a padding beside a convolution costs, where a form's own convolution cannot pad so itself."""

from math import prod

from unbranch.affine import ELEMENT, Affine, cost
from unbranch.fold.facts import Fact
from unbranch.fold.graph import Graph


def padding_work(graph: Graph, fact: Fact) -> float:
    """As much as one that stands there already, so that none is done again: every element is read, the padded ones are written."""
    g, shape = fact.geometry, graph.values[fact.source].shape
    size = (n + before + after for n, (before, after) in zip(shape[2:], g.padding, strict=True))
    positions = shape[0] * prod(size)
    if g.mode == "zeros" or not g.is_padded:
        return ELEMENT * (prod(shape) + shape[1] * positions)
    return cost(Affine.identity(shape[1], g.rank), (positions,))
