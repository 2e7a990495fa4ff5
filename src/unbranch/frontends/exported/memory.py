"""Which nodes of a program share memory, as the schemas of their ops declare it, and what in-place ops overwrite.

A *cell* is one view of memory and holds one value at a time; a *storage* is the set of views that overlap or may overlap.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from unbranch.frontends.exported.nodes import nodes_in
from unbranch.ops import Operand

DETACHES = "aten.detach_.default"
"""An op that is in place by name and writes nothing."""

UNDECLARED = {
    "aten.dropout.default",
    "aten.dropout_.default",
    "aten.feature_dropout.default",
    "aten.alpha_dropout.default",
    "aten.feature_alpha_dropout.default",
    "aten.type_as.default",
    "aten.broadcast_tensors.default",
    "aten.meshgrid.default",
    "aten.meshgrid.indexing",
    "aten.atleast_1d.default",
    "aten.atleast_2d.default",
    "aten.atleast_3d.default",
    "aten.einsum.default",
    "aten.pixel_shuffle.default",
    "aten.pixel_unshuffle.default",
    "aten.cartesian_prod.default",
}
"""Ops that may return a view of their operand although their schema does not say so."""


@dataclass(eq=False)
class Fixed:
    """A tensor, or several, the same in every run: ``tensor``, or ``target(*args)`` worked out when it is wanted."""

    target: Any = None
    args: Sequence[Any] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    tensor: Any = None

    def value(self) -> Any:
        """The tensor, or the tuple of them."""
        if self.tensor is None:
            with torch.no_grad():
                self.tensor = self.target(*_values(self.args), **_values(self.kwargs))
        return self.tensor


def _values(tree: Any) -> Any:
    if isinstance(tree, Fixed):
        return tree.value()
    if isinstance(tree, list | tuple):
        return [_values(item) for item in tree]
    if isinstance(tree, dict):
        return {key: _values(item) for key, item in tree.items()}
    return tree


@dataclass(eq=False)
class Storage:
    """Memory. ``external`` memory is seen from outside the program: inputs, parameters, buffers."""

    external: bool = False
    cells: list["Cell"] = field(default_factory=list)


@dataclass(eq=False)
class Cell:
    """One view of a storage: the nodes that name it, and what it holds now."""

    storage: Storage
    value: Operand | Fixed
    nodes: list[Node] = field(default_factory=list)


def merge(storages: list[Storage]) -> Storage:
    """The storages as one; a new one where there are none."""
    first = storages[0] if storages else Storage()
    for other in storages[1:]:
        if other is first:
            continue
        first.external |= other.external
        for cell in other.cells:
            cell.storage = first
        first.cells.extend(other.cells)
        other.cells = []
    return first


def given(node: Node) -> Iterator[tuple[torch.Argument, Any]]:
    """The arguments of a call with their declarations."""
    assert isinstance(node.target, OpOverload)
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            yield argument, node.args[position]
        elif argument.name in node.kwargs:
            yield argument, node.kwargs[argument.name]


def written_by(node: Node) -> list[Node]:
    """The nodes whose memory a call writes to."""
    if node.op != "call_function":
        return []
    if isinstance(node.target, OpOverload):
        if not node.target._schema.is_mutable or str(node.target) == DETACHES:
            return []
        return [
            n for a, tree in given(node) if a.alias_info and a.alias_info.is_write for n in nodes_in(tree)
        ]
    if isinstance(node.target, torch._ops.HigherOrderOperator) and _bodies_write(node):
        return list(node.all_input_nodes)
    return []


def aliased_by(node: Node) -> list[Node]:
    """The nodes of whose memory a call's result may be a view."""
    if isinstance(node.target, torch._ops.HigherOrderOperator) or str(node.target) in UNDECLARED:
        return list(node.all_input_nodes)
    if not isinstance(node.target, OpOverload) or all(
        r.alias_info is None for r in node.target._schema.returns
    ):
        return []
    return [n for a, tree in given(node) if a.alias_info for n in nodes_in(tree)]


def bodies(node: Node) -> Iterator[GraphModule]:
    """The graphs that a higher-order op runs."""
    owner = node.graph.owning_module
    for argument in node.all_input_nodes:
        body = attrgetter(str(argument.target))(owner) if argument.op == "get_attr" else None
        if isinstance(body, GraphModule):
            yield body


def _bodies_write(node: Node) -> bool:
    return any(written_by(inner) for body in bodies(node) for inner in body.graph.nodes)


def written_placeholders(program: ExportedProgram) -> set[Node]:
    """The placeholders whose memory the program writes to, in place or by returning what they are to hold next."""
    roots: dict[Node, set[Node]] = {}
    specs = program.graph_signature.input_specs
    returned = {spec.target for spec in program.graph_signature.output_specs if spec.target}
    written = {
        node for node, spec in zip(program.graph.nodes, specs, strict=False) if spec.target in returned
    }
    for node in program.graph.nodes:
        if node.op == "placeholder":
            roots[node] = {node}
            continue
        sources = aliased_by(node) if isinstance(node.target, OpOverload) else node.all_input_nodes
        roots[node] = set().union(*(roots[source] for source in sources))
        for target in written_by(node):
            written |= roots[target]
    return written
