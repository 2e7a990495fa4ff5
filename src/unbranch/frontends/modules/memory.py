"""Memory that is written to while somebody still reads it: what a fold may not move an op across."""

from collections import defaultdict
from functools import cached_property

from unbranch.affine import NotLinear
from unbranch.fold.facts import Fact
from unbranch.fold.graph import Graph, Node
from unbranch.ops import Identity, Permute, Reshape, Slice

WRITES = ("write", "aten.slice_scatter.default")
"""What a recording notes of a value whose memory was written to through another view."""


def is_in_place(node: Node) -> bool:
    """The op writes its result where its first operand was."""
    return node.spelling.startswith("aten.") and node.spelling.split(".")[1].endswith("_")


class Memory:
    """Of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @cached_property
    def overwritten(self) -> dict[int, list[Node]]:
        """For each value the nodes after which its memory holds another one."""
        found: dict[int, list[Node]] = defaultdict(list)
        for node in self.graph.nodes:
            some = node.inputs[:1] if node.spelling in WRITES else node.inputs if is_in_place(node) else ()
            for value in some:
                found[value].append(node)
        return found

    def check_source(self, fact: Fact) -> None:
        """No member overwrites the source, which others may hold.

        Raises:
            NotLinear: one does.
        """
        same_memory = {fact.source}
        for index in sorted(fact.members):
            node = self.graph.nodes[index]
            if node.inputs[0] not in same_memory:
                continue
            if is_in_place(node):
                raise NotLinear(f"{node.spelling} overwrites the value that it starts from")
            if isinstance(node.records[0], Reshape | Permute | Identity | Slice):
                same_memory.update(node.outputs)

    def check_untouched(self, fact: Fact, until: int) -> None:
        """Nobody overwrites the source before the node ``until`` reads it, nor at any time a value that will share memory with another.

        Raises:
            NotLinear: somebody does.
        """
        first = min(fact.members)
        inner = {o for index in fact.members for o in self.graph.nodes[index].outputs} - {fact.value}
        for value in (fact.source, *inner):
            for node in self.overwritten.get(value, ()):
                soon = value != fact.source or first <= node.index < until
                if soon and node.index not in fact.members:
                    raise NotLinear(f"{node.spelling} overwrites a value that it starts from or goes through")
