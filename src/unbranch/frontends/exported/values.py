"""What the nodes of a program hold while it is read: values in cells of memory, constants, sizes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from unbranch.affine import NotLinear
from unbranch.fold.graph import Graph, operands_in
from unbranch.frontends.exported.memory import Cell, Fixed, Storage
from unbranch.frontends.exported.nodes import mapped, operand
from unbranch.frontends.exported.shapes import asks_shape, bounds, shape_only, slab
from unbranch.frontends.exported.sizes import Numbers
from unbranch.ops import Identity, Operand, Permute, Reshape, read

SCATTERS = ("aten.slice_scatter.default", "aten.select_scatter.default")

SIZED = "an argument is computed from the input's size"


@dataclass(frozen=True, eq=False)
class Part:
    """A slice of a cell of which only the shape is asked, or into which something is written: ``cuts`` are (axis, start, stop).

    ``axes`` says which of the cell's axes each axis of the slice is; ``cuts`` is None where a bound depends on the input's size.
    """

    cell: Cell
    axes: tuple[int, ...]
    cuts: tuple[tuple[int, int, int | None], ...] | None


@dataclass(frozen=True, eq=False)
class Spread:
    """A constant repeated to a shape that depends on the input's size."""

    value: Fixed | float


@dataclass(frozen=True, eq=False)
class Number:
    """A number computed from the input's size; ``value`` stands for it, None where it is no integer."""

    value: int | None


@dataclass(frozen=True, eq=False)
class Several:
    """The results of an op that returns more than one constant."""

    value: Fixed
    storage: Storage


@dataclass
class Reading:
    """The neutral graph of a program and how it hangs together with the nodes.

    ``nodes`` holds the node of each op of the graph and ``members`` the op of each node; ``names`` the nodes that name a value, each from a
    position on. Nodes in ``passing`` only ask for a shape, or name a value anew; those in ``fixed`` hold constants.
    """

    graph: Graph
    nodes: list[Node] = field(default_factory=list)
    names: dict[int, list[tuple[Node, int]]] = field(default_factory=dict)
    positions: dict[Node, int] = field(default_factory=dict)
    members: dict[Node, int] = field(default_factory=dict)
    passing: set[Node] = field(default_factory=set)
    fixed: set[Node] = field(default_factory=set)

    @cached_property
    def nodes_of(self) -> dict[int, list[Node]]:
        """The nodes of each op, its results' included, once all is read."""
        found: dict[int, list[Node]] = {}
        for node, index in self.members.items():
            found.setdefault(index, []).append(node)
        return found


class Values:
    """The graph so far, and what each node holds."""

    def __init__(self, program: ExportedProgram, numbers: Numbers) -> None:
        self.program, self.numbers = program, numbers
        tensors = [t for t in program.state_dict.values() if isinstance(t, Tensor)]
        device = tensors[0].device if tensors else torch.device("cpu")
        self.reading = Reading(Graph(torch.device("cpu") if device.type == "mps" else device))
        self.items: dict[Node, Any] = {}
        nodes = list(program.graph.nodes)
        self.reading.positions = {node: position for position, node in enumerate(nodes)}
        self.shape_only = shape_only(nodes)
        self.last_use = {
            node: max(
                (self.reading.positions[user] for user in node.users if self._reads(user, node)), default=-1
            )
            for node in nodes
        }

    def _reads(self, user: Node, node: Node) -> bool:
        return user not in self.shape_only and not asks_shape(user, node)

    def fresh(self, value: Tensor) -> Operand:
        """A new value, shaped like ``value``."""
        return self.reading.graph.value([self.numbers(size) for size in value.shape], value.dtype)

    def new_cell(self, node: Node, value: Operand | Fixed, storage: Storage) -> None:
        """``node`` is new memory, or a new view of ``storage``."""
        cell = Cell(storage, value)
        storage.cells.append(cell)
        self.items[node] = cell
        self.name(node, cell)

    def name(self, node: Node, cell: Cell) -> None:
        """``node`` is one more name of the cell, and of what it holds from here on."""
        cell.nodes.append(node)
        if isinstance(cell.value, Operand):
            position = self.reading.positions[node]
            self.reading.names.setdefault(cell.value.index, []).append((node, position))

    def fix(self, node: Node, value: Fixed, storage: Storage) -> None:
        """``node`` holds a constant."""
        self.reading.fixed.add(node)
        self.new_cell(node, value, storage)

    def rename(self, node: Node, item: Any) -> None:
        """Another name for the same view."""
        self.items[node] = item
        self.reading.passing.add(node)
        if isinstance(item, Cell):
            self.name(node, item)

    def passed_on(self, node: Node, item: Any) -> None:
        """A copy of the same value in new memory."""
        self.reading.passing.add(node)
        if isinstance(item, Cell):
            self.new_cell(node, item.value, Storage())
        else:
            self.items[node] = item

    def arguments(self, tree: Any) -> Any:
        """Nested arguments as a reader is given them."""
        return mapped(tree, lambda node: self.argument(node, self.items[node]))

    def argument(self, node: Node, item: Any) -> Any:
        """What a reader is given for a node."""
        if isinstance(item, Cell):
            return item.value.value() if isinstance(item.value, Fixed) else item.value
        if isinstance(item, Number):
            return item.value
        if isinstance(item, list):
            return [self.argument(node, part) for part in item]
        if isinstance(item, Spread | Part):
            value = self.fresh(node.meta["val"])
            inputs = (
                [item.cell.value] if isinstance(item, Part) and isinstance(item.cell.value, Operand) else []
            )
            self.append(node, inputs, {}, [value], "its shape depends on the input's size")
            self.new_cell(node, value, Storage())
            return value
        return item

    def constant(self, item: Any) -> Fixed | float | None:
        """The constant that an item is, spread or not."""
        if isinstance(item, Spread):
            return item.value
        return item.value if isinstance(item, Cell) and isinstance(item.value, Fixed) else None

    def number(self, value: Any) -> Any:
        """A size, or what is no size, as it is."""
        if isinstance(value, torch.SymInt):
            return Number(self.numbers(value))
        return Number(None) if isinstance(value, torch.SymFloat | torch.SymBool) else value

    def called(self, node: Node, sized: bool) -> Any:
        """Append a call; its results, nested as the node's are."""
        written = self._written_constant(node)
        args = self.arguments(node.args if written is None else (node.args[0], *node.args[2:]))
        kwargs = self.arguments(dict(node.kwargs))
        if written is not None:
            args.insert(1, written)
        reason = None
        if str(node.target) == "aten.slice.Tensor":
            where = bounds(node)
            args, kwargs, sized = [args[0], *(where or ())], {}, where is None
        elif str(node.target) == "aten.slice_scatter.default":
            where = slab(node)
            args, kwargs, sized = [args[0], args[1], *(where or ())], {}, where is None
        unknown = any(
            isinstance(i, Number) and i.value is None for i in map(self.items.get, node.all_input_nodes)
        )
        if unknown or (sized and not _arranges(str(node.target), args, kwargs)):
            reason = SIZED
        if not isinstance(node.target, OpOverload):
            reason = f"{node.target} runs a graph of its own"
        return self.append_all(node, args, kwargs, reason)

    def _written_constant(self, node: Node) -> Tensor | None:
        """What a functional write puts into a slice, where that is a constant that was repeated to the slice's shape."""
        source = self.items.get(operand(node, 1)) if str(node.target) in SCATTERS else None
        if not isinstance(source, Spread):
            return None
        shape = [self.numbers(size) for size in operand(node, 1).meta["val"].shape]
        return tensor_of(source.value).expand(shape)

    def append_all(self, node: Node, args: Any, kwargs: dict[str, Any], reason: str | None) -> Any:
        """Append a call with fresh values for all that it returns; these, nested as they are."""
        results = self.fresh_like(node.meta.get("val"))
        outputs = list(operands_in(results)) or [self.reading.graph.value(())]
        self.append(node, args, kwargs, outputs, reason)
        return results

    def fresh_like(self, value: Any) -> Any:
        """New values for nested tensors."""
        if isinstance(value, Tensor):
            return self.fresh(value)
        return [self.fresh_like(v) for v in value] if isinstance(value, list | tuple) else self.number(value)

    def append(
        self,
        node: Node,
        args: Any,
        kwargs: dict[str, Any],
        outputs: Sequence[Operand],
        reason: str | None = None,
        spelling: str | None = None,
    ) -> None:
        """Append an op to the graph: ``node``'s."""
        self.reading.graph.call(spelling or str(node.target), args, kwargs, outputs, reason)
        self.reading.members[node] = len(self.reading.nodes)
        self.reading.nodes.append(node)

    def results(self, node: Node, results: Any, storage: Storage) -> None:
        """Cells for what a call returned."""
        if isinstance(results, Operand):
            self.new_cell(node, results, storage)
        else:
            self.items[node] = self._cells_for(results, storage)

    def _cells_for(self, results: Any, storage: Storage) -> Any:
        if isinstance(results, list):
            return [self._cells_for(result, storage) for result in results]
        if not isinstance(results, Operand):
            return results
        storage.cells.append(Cell(storage, results))
        return storage.cells[-1]


def tensor_of(constant: Fixed | float) -> Tensor:
    """The numbers of a constant."""
    return constant.value() if isinstance(constant, Fixed) else torch.tensor(constant)


def cells_in(item: Any) -> list[Cell]:
    """The cells of an item, nested ones included."""
    if isinstance(item, Part):
        return [item.cell]
    if isinstance(item, Several):
        return [Cell(item.storage, item.value)]
    if isinstance(item, list):
        return [cell for part in item for cell in cells_in(part)]
    return [item] if isinstance(item, Cell) else []


def _arranges(spelling: str, args: Any, kwargs: Any) -> bool:
    """The op only moves elements, so a size among its arguments is what one expects."""
    try:
        records = read(spelling, args, kwargs)
    except NotLinear:
        return False
    return isinstance(records[0], Reshape | Permute | Identity)
