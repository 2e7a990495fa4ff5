"""Read an exported program into the neutral graph: what each node holds, constants and memory followed.

In-place ops are understood as the values that they leave behind. One whose memory something else still looks at afterwards stays as it
is, and so does one that writes to an input, a parameter or a buffer. A border that is filled slab by slab (a slice, then a copy into it) becomes
one write of a constant for each slab, in its in-place and in its functional form.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from unbranch.affine import NotLinear
from unbranch.fold.graph import Graph, operands_in
from unbranch.frontends.exported.memory import (
    Cell,
    Fixed,
    Storage,
    aliased_by,
    merge,
    written_by,
    written_placeholders,
)
from unbranch.frontends.exported.shapes import (
    FILLS_IN_PLACE,
    SHAPED_LIKE,
    asks_shape,
    bounds,
    is_whole,
    shape_only,
    slab,
)
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


@dataclass
class Reading:
    """The neutral graph of a program and how it hangs together with the nodes."""

    graph: Graph
    nodes: list[Node] = field(default_factory=list)
    names: dict[int, list[tuple[Node, int]]] = field(default_factory=dict)
    positions: dict[Node, int] = field(default_factory=dict)
    members: dict[Node, int] = field(default_factory=dict)
    passing: set[Node] = field(default_factory=set)
    fixed: set[Node] = field(default_factory=set)
    """``nodes``: the node of each op; ``names``: the nodes that name a value, each from a position on; ``passing``: nodes that only ask a shape or
    name a value anew; ``fixed``: nodes that hold constants."""


def read_program(program: ExportedProgram, numbers: Numbers) -> Reading:
    """The graph of a program, its symbolic sizes replaced by ``numbers``."""
    return _Reader(program, numbers).run()


class _Reader:
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
        self.written = written_placeholders(program.graph)
        specs = zip(nodes, program.graph_signature.input_specs, strict=False)
        self.specs = {node: spec for node, spec in specs if node.op == "placeholder"}

    def _reads(self, user: Node, node: Node) -> bool:
        return user not in self.shape_only and not asks_shape(user, node)

    def run(self) -> Reading:
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "get_attr":
                self._attribute(node)
            elif node.op == "call_function":
                self._call(node)
            else:
                self.reading.graph.kept.update(o.index for o in operands_in(self._arguments(node.args)))
        self._keep_named()
        return self.reading

    def _keep_named(self) -> None:
        """Values that a preserved module call's signature names are read from outside."""
        named = {
            argument.name
            for entry in self.program.module_call_graph
            if entry.signature is not None
            for argument in (*entry.signature.inputs, *entry.signature.outputs)
            if isinstance(argument, torch.export.graph_signature.TensorArgument)
        }
        for node, item in self.items.items():
            if node.name in named:
                self.reading.graph.kept.update(o.index for o in operands_in(self._argument(node, item)))

    # What a node is

    def _placeholder(self, node: Node) -> None:
        spec, value = self.specs[node], node.meta["val"]
        if not isinstance(value, Tensor):
            self.items[node] = self._number(value)
            return
        tensor = None
        if node not in self.written and spec.kind is not InputKind.USER_INPUT and spec.target is not None:
            stored = self.program.state_dict.get(spec.target, self.program.constants.get(spec.target))
            tensor = stored if isinstance(stored, Tensor) else None
        if tensor is None:
            self._new_cell(node, self._fresh(value), Storage(external=True))
        else:
            self._fix(node, Fixed(tensor=tensor.detach()), Storage(external=True))

    def _attribute(self, node: Node) -> None:
        held = operator.attrgetter(str(node.target))(self.program.graph_module)
        if isinstance(held, Tensor):
            self._fix(node, Fixed(tensor=held.detach()), Storage(external=True))
        else:
            self.items[node] = held

    def _call(self, node: Node) -> None:
        value = node.meta.get("val")
        if node in self.shape_only:
            self.items[node] = self._part(node)
            self.reading.passing.add(node)
        elif node.target is operator.getitem:
            self._pick(node)
        elif str(node.target) == "aten.slice.Tensor" and is_whole(node):
            self._rename(node, self.items[node.args[0]])
        elif str(node.target) == "aten.slice_scatter.default" and is_whole(node):
            self._passed_on(node, self.items[node.args[1]])
        elif written_by(node):
            self._write(node)
        elif str(node.target) in SHAPED_LIKE:
            self._shaped_like(node)
        elif isinstance(value, Tensor | list | tuple):
            self._compute(node)
        else:
            self._measure(node, value)

    def _measure(self, node: Node, value: Any) -> None:
        """A node that makes no tensor: a size, an assertion, or a number read out of a value."""
        self.items[node] = self._number(value)
        if isinstance(node.target, OpOverload) and not str(node.target).startswith(
            ("aten.sym_", "aten._assert_tensor_metadata")
        ):
            operands = list(operands_in(self._arguments((node.args, node.kwargs))))
            if operands:
                result = self.reading.graph.value(())
                self._append(node, operands, {}, [result], "it reads a value's numbers")
        elif node.all_input_nodes:
            self.reading.passing.add(node)

    def _number(self, value: Any) -> Any:
        if isinstance(value, torch.SymInt):
            return Number(self.numbers(value))
        return Number(None) if isinstance(value, torch.SymFloat | torch.SymBool) else value

    def _part(self, node: Node) -> Any:
        if isinstance(self.items[node.args[0]], Spread):
            self._arguments(node.args[0])
        source = self.items[node.args[0]]
        if isinstance(source, Cell):
            whole = tuple(range(node.args[0].meta["val"].ndim))
            source = Part(source, whole, ())
        if not isinstance(source, Part):
            return source
        where = slab(node)
        axes = source.axes
        if where is None or source.cuts is None:
            return Part(source.cell, axes, None)
        axis, start, stop, step = where
        cut = () if (start, stop, step) == (0, None, 1) else ((axes[axis], start, stop),)
        if step != 1:
            return Part(source.cell, axes, None)
        if str(node.target) == "aten.select.int":
            axes = (*axes[:axis], *axes[axis + 1 :])
        return Part(source.cell, axes, source.cuts + cut)

    # Cells and constants

    def _fresh(self, value: Tensor) -> Operand:
        return self.reading.graph.value([self.numbers(size) for size in value.shape], value.dtype)

    def _new_cell(self, node: Node, value: Operand | Fixed, storage: Storage) -> None:
        cell = Cell(storage, value)
        storage.cells.append(cell)
        self.items[node] = cell
        self._name(node, cell)

    def _name(self, node: Node, cell: Cell) -> None:
        """``node`` is one more name of the cell, and of what it holds from here on."""
        cell.nodes.append(node)
        if isinstance(cell.value, Operand):
            position = self.reading.positions[node]
            self.reading.names.setdefault(cell.value.index, []).append((node, position))

    def _fix(self, node: Node, value: Fixed, storage: Storage) -> None:
        self.reading.fixed.add(node)
        self._new_cell(node, value, storage)

    def _rename(self, node: Node, item: Any) -> None:
        """Another name for the same view."""
        self.items[node] = item
        self.reading.passing.add(node)
        if isinstance(item, Cell):
            self._name(node, item)

    def _passed_on(self, node: Node, item: Any) -> None:
        """A copy of the same value in new memory."""
        self.reading.passing.add(node)
        if isinstance(item, Cell):
            self._new_cell(node, item.value, Storage())
        else:
            self.items[node] = item

    def _pick(self, node: Node) -> None:
        """One of several results."""
        results = self.items[node.args[0]]
        item = results[node.args[1]] if isinstance(results, list) else results
        self.items[node] = item
        if isinstance(item, Cell):
            self._name(node, item)
            source = self.reading.members.get(node.args[0])
            if source is not None:
                self.reading.members[node] = source

    def _arguments(self, tree: Any) -> Any:
        return _mapped(tree, lambda node: self._argument(node, self.items[node]))

    def _argument(self, node: Node, item: Any) -> Any:
        """What a reader is given for a node."""
        if isinstance(item, Cell):
            return item.value.value() if isinstance(item.value, Fixed) else item.value
        if isinstance(item, Number):
            return item.value
        if isinstance(item, list):
            return [self._argument(node, part) for part in item]
        if isinstance(item, Spread | Part):
            value = self._fresh(node.meta["val"])
            inputs = (
                [item.cell.value] if isinstance(item, Part) and isinstance(item.cell.value, Operand) else []
            )
            self._append(node, inputs, {}, [value], "its shape depends on the input's size")
            self._new_cell(node, value, Storage())
            return value
        return item

    # Ops

    def _compute(self, node: Node) -> None:
        """An op without side effects: a constant, an op that the table knows, or an opaque one."""
        items = [self.items[n] for n in node.all_input_nodes]
        storage = merge([i.storage for n in aliased_by(node) for i in _cells(self.items[n])])
        sized = any(isinstance(item, Number) for item in items)
        if (
            not sized
            and _is_repeatable(node)
            and all(isinstance(i, Cell) and isinstance(i.value, Fixed) for i in items)
        ):
            frozen = _mapped((node.args, node.kwargs), lambda n: self.items[n].value)
            self._fix(node, Fixed(node.target, *frozen), storage)
        elif str(node.target) == "aten.expand.default" and self._constant(items[0]) is not None:
            self.items[node] = Spread(self._constant(items[0]))
            self.reading.fixed.add(node)
        else:
            self._results(node, self._called(node, sized), storage)

    def _constant(self, item: Any) -> Fixed | float | None:
        """The constant that an item is, spread or not."""
        if isinstance(item, Spread):
            return item.value
        return item.value if isinstance(item, Cell) and isinstance(item.value, Fixed) else None

    def _called(self, node: Node, sized: bool) -> Any:
        """Append a call; its results, nested as the node's are."""
        written = self._written_constant(node)
        args = self._arguments(node.args if written is None else (node.args[0], *node.args[2:]))
        kwargs = self._arguments(dict(node.kwargs))
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
        return self._append_all(node, args, kwargs, reason)

    def _written_constant(self, node: Node) -> Tensor | None:
        """What a functional write puts into a slice, where that is a constant that was repeated to the slice's shape."""
        source = self.items.get(node.args[1]) if str(node.target) in SCATTERS else None
        return _tensor(source.value) if isinstance(source, Spread) else None

    def _append_all(self, node: Node, args: Any, kwargs: dict[str, Any], reason: str | None) -> Any:
        """Append a call with fresh values for all that it returns; these, nested as they are."""
        results = self._fresh_like(node.meta.get("val"))
        outputs = list(operands_in(results)) or [self.reading.graph.value(())]
        self._append(node, args, kwargs, outputs, reason)
        return results

    def _fresh_like(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._fresh(value)
        return (
            [self._fresh_like(v) for v in value] if isinstance(value, list | tuple) else self._number(value)
        )

    def _append(
        self,
        node: Node,
        args: Any,
        kwargs: dict[str, Any],
        outputs: Sequence[Operand],
        reason: str | None = None,
        spelling: str | None = None,
    ) -> None:
        self.reading.graph.call(spelling or str(node.target), args, kwargs, outputs, reason)
        self.reading.members[node] = len(self.reading.nodes)
        self.reading.nodes.append(node)

    def _results(self, node: Node, results: Any, storage: Storage) -> None:
        """Cells for what a call returned."""
        if isinstance(results, Operand):
            self._new_cell(node, results, storage)
        else:
            self.items[node] = self._cells_for(results, storage)

    def _cells_for(self, results: Any, storage: Storage) -> Any:
        if isinstance(results, list):
            return [self._cells_for(result, storage) for result in results]
        if not isinstance(results, Operand):
            return results
        storage.cells.append(Cell(storage, results))
        return storage.cells[-1]

    def _shaped_like(self, node: Node) -> None:
        """A value of which only the shape comes from the first operand: a copy of the second, or one number."""
        args = list(node.args[1:]) + [
            node.kwargs[k] for k in ("fill_value", "value", "src") if k in node.kwargs
        ]
        source = args[0] if args else SHAPED_LIKE[str(node.target)]
        if not isinstance(source, Node):
            self.items[node] = Spread(float(source))
            self.reading.fixed.add(node)
            return
        constant = self._constant(self.items[source])
        if constant is not None:
            self.items[node] = Spread(constant)
            self.reading.fixed.add(node)
            return
        operands = list(operands_in(self._arguments(source)))
        if not operands:
            self._results(node, self._append_all(node, [], {}, SIZED), Storage())
            return
        value = self._fresh(node.meta["val"])
        same = operands[0].shape == value.shape and operands[0].dtype == value.dtype
        self._append(node, operands, {}, [value], None if same else "it broadcasts", "aten.clone.default")
        self._new_cell(node, value, Storage())

    # Writing in place

    def _write(self, node: Node) -> None:
        if str(node.target) in FILLS_IN_PLACE and isinstance(self.items[node.args[0]], Part):
            self._fill(node)
            return
        for spread in (n for n in written_by(node) if isinstance(self.items[n], Spread)):
            self._arguments(spread)
        targets = [cell for n in written_by(node) for cell in _cells(self.items[n])]
        written = merge([cell.storage for cell in targets])
        why = self._why_stays(node, targets[:1], written)
        sized = any(isinstance(self.items[n], Number) for n in node.all_input_nodes)
        if why is None:
            results = self._called(node, sized)
        else:
            results = self._append_all(
                node, self._arguments(node.args), self._arguments(dict(node.kwargs)), why
            )
        if len(targets) == 1 and isinstance(results, Operand):
            cell = targets[0]
            self.items[node] = cell
            self._hold(cell, results, node)
        else:
            for cell in targets:
                self._overwritten(cell, node)
            self._results(node, results, written)
        self._stale(written, targets, node)

    def _why_stays(self, node: Node, targets: list[Cell], storage: Storage) -> str | None:
        """Why a write cannot be taken out of the program."""
        if storage.external:
            return "it writes to an input, a parameter or a buffer"
        if any(cell not in targets for cell in self._watching(storage, node)):
            return "its memory is read through another view afterwards"
        return None

    def _watching(self, storage: Storage, node: Node) -> list[Cell]:
        """The cells of a storage that are read after ``node``."""
        position = self.reading.positions[node]
        return [c for c in storage.cells if any(self.last_use[n] > position for n in c.nodes)]

    def _hold(self, cell: Cell, value: Operand, node: Node) -> None:
        """``cell`` holds another value from ``node`` on, whichever of its nodes is asked."""
        cell.value = value
        if node not in cell.nodes and self.items.get(node) is cell:
            cell.nodes.append(node)
        position = self.reading.positions[node]
        self.reading.names[value.index] = [(name, position) for name in cell.nodes]

    def _overwritten(self, cell: Cell, node: Node) -> None:
        """What a cell holds after a write that is not understood."""
        value = self._fresh(cell.nodes[0].meta["val"])
        written = [self.reading.graph.values[i] for i in self.reading.graph.nodes[-1].outputs]
        old = [cell.value] if isinstance(cell.value, Operand) else []
        why = "its memory was written to through another view"
        self.reading.graph.call("write", [*old, *written], {}, [value], why)
        self.reading.nodes.append(node)
        self._hold(cell, value, node)

    def _stale(self, storage: Storage, targets: list[Cell], node: Node) -> None:
        """Every other view of the memory that is still read holds something new."""
        for cell in self._watching(storage, node):
            if cell not in targets:
                self._overwritten(cell, node)

    def _fill(self, node: Node) -> None:
        """A constant copied into a slice: a write to the cell that was sliced."""
        part = self.items[node.args[0]]
        cell = part.cell
        source = node.args[1] if len(node.args) > 1 else 0.0
        constant = self._constant(self.items[source]) if isinstance(source, Node) else float(source)
        why = self._why_stays(node, [cell], cell.storage)
        if why is None and (part.cuts is None or len(part.cuts) != 1):
            why = "it writes to a part that is not one slab"
        if why is None and constant is None:
            why = "what is written depends on the input"
        if why is not None or not isinstance(cell.value, Operand) or constant is None:
            self._append_all(node, self._arguments(node.args[1:]), {}, why or "it writes to a constant")
            self._overwritten(cell, node)
        else:
            axis, start, stop = part.cuts[0]
            written = _lifted(constant, part, axis)
            value = self._fresh(cell.nodes[0].meta["val"])
            self._append(
                node,
                [cell.value, written, axis, start, stop],
                {},
                [value],
                None,
                "aten.slice_scatter.default",
            )
            self._hold(cell, value, node)
        self._stale(cell.storage, [cell], node)
        self.items[node] = part


def _tensor(constant: Fixed | float) -> Tensor:
    return constant.value() if isinstance(constant, Fixed) else torch.tensor(constant)


def _lifted(constant: Fixed | float, part: Part, axis: int) -> Tensor:
    """What is written, with the axis back that a select took away."""
    source = _tensor(constant)
    after = sum(a > axis for a in part.axes)
    return source if axis in part.axes or source.ndim < after else source.unsqueeze(source.ndim - after)


def _cells(item: Any) -> list[Cell]:
    if isinstance(item, Part):
        return [item.cell]
    if isinstance(item, list):
        return [cell for part in item for cell in _cells(part)]
    return [item] if isinstance(item, Cell) else []


def _is_repeatable(node: Node) -> bool:
    """The same in every run, with one tensor as its result."""
    if not isinstance(node.target, OpOverload) or not isinstance(node.meta["val"], Tensor):
        return False
    if str(node.target).startswith(("aten.empty", "aten.new_empty")):
        return False
    return torch.Tag.nondeterministic_seeded not in node.target.tags


def _arranges(spelling: str, args: Any, kwargs: Any) -> bool:
    """The op only moves elements, so a size among its arguments is what one expects."""
    try:
        records = read(spelling, args, kwargs)
    except NotLinear:
        return False
    return isinstance(records[0], Reshape | Permute | Identity)


def _mapped(tree: Any, change: Callable[[Node], Any]) -> Any:
    if isinstance(tree, Node):
        return change(tree)
    if isinstance(tree, list | tuple):
        return [_mapped(item, change) for item in tree]
    if isinstance(tree, dict):
        return {key: _mapped(item, change) for key, item in tree.items()}
    return tree
