"""Where a region stands in the program, and whether it can be taken out."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from unbranch.affine import NotLinear
from unbranch.fold.facts import Fact
from unbranch.frontends.exported.nodes import operand
from unbranch.frontends.exported.sizes import difference
from unbranch.frontends.exported.values import Reading
from unbranch.frontends.modules.emit import check_emittable

ASSERTION = "aten._assert_tensor_metadata.default"
SIZE = torch.ops.aten.sym_size.int


@dataclass(eq=False)
class Place:
    """A region found in the program.

    The convolution reads ``source`` and is put before ``at``, the first member that reads it: later, its memory may hold something else.
    ``moves`` are the views that are repeated behind it, before ``end``. Whoever names the value in ``names`` is given the result. ``gone``
    are the nodes that leave; ``sizes`` says where a size that was asked of one of them is found instead.
    """

    fact: Fact
    source: Node
    at: Node
    end: Node
    names: list[tuple[Node, int]]
    moves: list[Node]
    gone: set[Node] = field(default_factory=set)
    sizes: dict[Node, tuple[Node | None, int]] = field(default_factory=dict)

    @property
    def linear(self) -> bool:
        """A matrix on one axis, no convolution."""
        return self.fact.geometry.rank == 0


def find(reading: Reading, fact: Fact) -> Place:
    """The place of a region.

    Raises:
        NotLinear: no op of torch's computes it, or something that only looks at shapes stands in the way.
    """
    g = fact.geometry
    check_emittable(g, g.rank == 0)
    if g.mode != "zeros" and g.is_padded and g.is_cropped:
        raise NotLinear(f"{g} pads with {g.mode} and crops at once, which no padding op does")
    graph = reading.graph
    readers = [i for i in fact.members if fact.source in graph.nodes[i].inputs]
    at = min((reading.nodes[i] for i in readers), key=reading.positions.__getitem__)
    sources = [name for name, since in reading.names[fact.source] if since < reading.positions[at]]
    names = reading.names[fact.value]
    producer = graph.producers[fact.value].index
    end = next((name for name, _ in names if reading.members.get(name) == producer), names[0][0])
    place = Place(fact, sources[-1], at, end, names, [reading.nodes[i] for i in fact.pending])
    place.gone = {node for index in fact.members for node in reading.nodes_of.get(index, ())}
    for move in place.moves:
        if any(isinstance(n.meta.get("val"), torch.Tensor) for n in move.all_input_nodes[1:]):
            raise NotLinear(f"{move.name} takes its shape from another value")
    for node, since in _inside(reading, fact):
        _release(reading, place, node, since)
    return place


def _inside(reading: Reading, fact: Fact) -> Iterable[tuple[Node, int]]:
    """The names of the values that will be no more."""
    for index in fact.members:
        for output in reading.graph.nodes[index].outputs:
            if output != fact.value:
                yield from reading.names.get(output, ())


def _release(reading: Reading, place: Place, node: Node, since: int) -> None:
    """See to it that nobody asks ``node`` anything once it is gone."""
    for user in node.users:
        if reading.positions[user] <= since or user in place.gone:
            continue
        if user.target is SIZE:
            place.sizes[user] = _same_size(place, user)
        elif str(user.target) == ASSERTION or (
            user in reading.passing | reading.fixed and user.op == "call_function"
        ):
            place.gone.add(user)
            _release(reading, place, user, since)
        else:
            raise NotLinear(f"{user.name} asks for the shape of {node.name}, which is inside")


def _same_size(place: Place, question: Node) -> tuple[Node | None, int]:
    """An axis that survives and is as long; None stands for the convolution's own result."""
    inputs = [
        n for n in question.graph.nodes if n.op == "placeholder" and isinstance(n.meta["val"], torch.Tensor)
    ]
    result = operand(place.moves[0]) if place.moves else place.end
    for node in (place.source, *inputs, result):
        for axis, size in enumerate(node.meta["val"].shape):
            if difference(size, question.meta["val"]) == 0:
                return (None if node is result else node), axis
    raise NotLinear(f"{question.name} asks for a size inside, which nothing else has")
