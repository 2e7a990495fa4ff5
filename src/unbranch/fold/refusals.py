"""The ops that would be linear but for the way they are used."""

from collections.abc import Iterator

from unbranch.fold.graph import Graph, Node
from unbranch.fold.interpret import Interpretation
from unbranch.ops import TABLE, Concat, Map, Pad, Sum


def refusals(known: Interpretation) -> Iterator[tuple[Node, str]]:
    """Each such op of a graph, and why it is none."""
    for node in known.graph.nodes:
        if node.reason is not None and node.spelling in TABLE and _is_floating(known.graph, node):
            yield node, node.reason
        if node.index in known.refusals and _could_join(known, node):
            yield node, known.refusals[node.index]


def _could_join(known: Interpretation, node: Node) -> bool:
    """It stands alone, and one of its operands is a map of something."""
    alone = all(len(fact.members) == 1 for fact in known.facts.get(node.outputs[0], ()))
    before = (known.graph.producers.get(value) for value in node.inputs)
    return alone and any(n is not None and isinstance(n.records[0], Map | Sum | Concat | Pad) for n in before)


def _is_floating(graph: Graph, node: Node) -> bool:
    return any(graph.values[value].dtype.is_floating_point for value in (*node.inputs, *node.outputs))
