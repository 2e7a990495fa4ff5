"""What a graph, and a region of it, amounts to: ops, multiply-adds."""

from collections.abc import Iterable
from math import prod

from unbranch.affine import Geometry, multiply_adds
from unbranch.fold.facts import Fact
from unbranch.fold.graph import Graph, Node
from unbranch.fold.report import Totals
from unbranch.ops import Identity, Map


def totals(graph: Graph, nodes: Iterable[Node], parameters: int = 0) -> Totals:
    """Of some nodes: all of a network, or a region. An op that returns its operand is none."""
    nodes = list(nodes)
    ops = sum(not isinstance(node.records[0], Identity) for node in nodes)
    return Totals(ops, sum(multiply_adds_of(graph, node) for node in nodes), parameters)


def multiply_adds_of(graph: Graph, node: Node) -> float:
    """Of one node, where that is a map."""
    if not isinstance(node.records[0], Map):
        return 0.0
    geometry = graph.geometry_of(node)
    positions = prod(graph.values[node.outputs[0]].shape) // max(1, geometry.out_channels)
    return multiply_adds(geometry, (positions,))


def weights_of(geometry: Geometry) -> int:
    """The parameters of one convolution, its bias included."""
    g = geometry
    return g.out_channels * (g.in_channels // g.groups) * prod(g.kernel) + g.out_channels * g.biased


def totals_of_map(fact: Fact) -> Totals:
    """Of the one convolution in a region's place."""
    positions = prod(fact.shape) // max(1, fact.geometry.out_channels)
    return Totals(1, multiply_adds(fact.geometry, (positions,)), weights_of(fact.geometry))
