"""Views put in order: nodes that only rearrange elements, or change nothing, are as few as their result needs.

What runs of reshapes and transposes leave is one arrangement of their source's elements, which at most a reshape and a transpose
make; often one of them will do, or none. A node is a view only where it is one at every size that the graph was read at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from unbranch.affine import NotLinear
from unbranch.fold.graph import Node
from unbranch.fold.layout import Layout
from unbranch.frontends.onnx.constants import is_standard
from unbranch.frontends.onnx.reading import Reading
from unbranch.ops import Identity, Permute, Record, Reshape

HANDED_ON = ("Identity", "Dropout")
"""Ops that cost a runtime nothing: alone they stay where they are."""

Step = tuple[str, list[int]]
"""A node to write: Reshape with its target, Transpose with its order, or Identity."""

Write = Callable[[ir.Value, ir.Value, list[Step]], ir.Value]
"""Puts the steps from a source in place of a value, and returns what has its place."""


@dataclass(frozen=True)
class _Move:
    """What a node does with its operand number ``operand``: its record at each size, and the shape that it is given."""

    operand: int
    records: tuple[Record, ...]
    before: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _View:
    """A value as an arrangement of ``source``, at each size. ``removed`` nodes go where it is computed in another way."""

    source: ir.Value
    layouts: tuple[Layout, ...]
    removed: int


class Views:
    """The views of a graph: noted before anything is rewritten, put in order when all is."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        numbers = [{node: i for i, node in enumerate(reading.nodes)} for reading in readings]
        self.moves: dict[ir.Node, _Move] = {}
        for node in readings[0].nodes:
            if all(node in known for known in numbers):
                calls = [
                    reading.graph.nodes[known[node]] for reading, known in zip(readings, numbers, strict=True)
                ]
                self._note(node, calls, readings)

    def _note(self, node: ir.Node, calls: Sequence[Node], readings: Sequence[Reading]) -> None:
        if not is_standard(node) or any(output.uses() for output in node.outputs[1:]):
            return
        records = [call.records[0] for call in calls]
        before = tuple(r.graph.values[c.inputs[0]].shape for r, c in zip(readings, calls, strict=True))
        value = readings[0].values[calls[0].inputs[0]]
        known = [record for record in records if isinstance(record, Identity | Reshape | Permute)]
        if len(known) == len(records):
            self.moves[node] = _Move(list(node.inputs).index(value), tuple(known), before)

    def repeated(self, old: ir.Node, new: ir.Node) -> None:
        """``new`` does what ``old`` does."""
        if old in self.moves:
            move = self.moves[old]
            self.moves[new] = _Move(0, move.records, move.before)

    def tidy(self, graph: ir.Graph, write: Write) -> None:
        """Compute in fewer nodes what views compute; the old ones lose their readers."""
        known: dict[ir.Value, list[_View]] = {}
        for node in graph:
            if node in self.moves:
                known[node.outputs[0]] = self._views_of(node, known)
        became: dict[ir.Value, ir.Value] = {}
        for value, views in known.items():
            if self._continues(value, known):
                continue
            found = [(view, steps) for view in views if (steps := _steps(view)) is not None]
            best, steps = max(found, key=_gain, default=(None, []))
            if best is not None and _gain((best, steps)) > (0, best.removed):
                if value.is_graph_output() and not steps:
                    steps = [("Identity", [])]
                became[value] = write(value, became.get(best.source, best.source), steps)

    def moves_something(self, node: ir.Node) -> bool:
        """It is counted as an op, since it does not merely hand its operand on."""
        return node not in self.moves or not isinstance(self.moves[node].records[0], Identity)

    def _views_of(self, node: ir.Node, known: dict[ir.Value, list[_View]]) -> list[_View]:
        """Of its operand, and of whatever that is a view of."""
        move = self.moves[node]
        value = node.inputs[move.operand]
        assert value is not None
        own = _View(value, tuple(map(Layout.original, move.before)), 0)
        passed = self._is_passed_on(value)
        views = []
        for view in (own, *known.get(value, ())):
            try:
                layouts = tuple(map(_moved, view.layouts, move.records))
            except NotLinear:
                continue
            removed = node.op_type not in HANDED_ON
            views.append(_View(view.source, layouts, removed + (view.removed if passed else 0)))
        return views

    def _is_passed_on(self, value: ir.Value) -> bool:
        """Nobody else needs it."""
        return len(value.uses()) == 1 and not value.is_graph_output()

    def _continues(self, value: ir.Value, known: dict[ir.Value, list[_View]]) -> bool:
        """Its only reader is a view of everything that it is a view of."""
        if not self._is_passed_on(value):
            return False
        user = next(iter(value.consumers()))
        return user in self.moves and len(known[user.outputs[0]]) > len(known[value])


def _gain(found: tuple[_View, list[Step]]) -> tuple[int, int]:
    """Fewer nodes; among equals, from further back."""
    view, steps = found
    return view.removed - len(steps), view.removed


def _moved(layout: Layout, record: Record) -> Layout:
    match record:
        case Reshape():
            return layout.reshape(record.shape)
        case Permute():
            return layout.permute(record.axes)
        case _:
            return layout


def _steps(view: _View) -> list[Step] | None:
    """The fewest nodes that make the view of its source; None where no two do, or where their numbers follow from the size.

    An axis that has one entry at some size says nothing there, so the order of axes is asked for at every size.
    """
    shapes = [layout.shape for layout in view.layouts]
    wanted = [layout.sizes for layout in view.layouts]
    for order in filter(None, map(_order, view.layouts)):
        if all(layout == Layout.original(layout.shape).permute(order) for layout in view.layouts):
            return [] if order == sorted(order) else [("Transpose", order)]
    if all(map(_in_order, view.layouts)):
        target = _target(shapes, wanted)
        return None if target is None else [("Reshape", target)]
    return _reshaped_first(view.layouts, shapes) or _permuted_first(view.layouts, wanted)


def _order(layout: Layout) -> list[int] | None:
    """The permutation of the source's axes that the view may be: those of size one in the order they come."""
    original = Layout.original(layout.shape).axes
    free = list(range(len(original)))
    order = []
    for axis in layout.axes:
        at = next((i for i in free if original[i] == axis), None)
        if at is None:
            return None
        free.remove(at)
        order.append(at)
    return None if free else order


def _in_order(layout: Layout, order: Sequence[int] | None = None) -> bool:
    """The elements come as they do in the source, or in the source with its axes in ``order``."""
    atoms = [atom for axis in layout.axes for atom in axis]
    places = list(order or range(len(layout.shape)))
    return atoms == sorted(atoms, key=lambda atom: (places.index(atom[0]), -atom[1]))


def _reshaped_first(layouts: Sequence[Layout], shapes: Sequence[tuple[int, ...]]) -> list[Step] | None:
    """A reshape to the view's axes in the order of the source, then a transpose."""
    for layout in layouts:
        places = sorted(range(len(layout.axes)), key=partial(_place, layout))
        if all(_in_order(other.permute(places)) for other in layouts):
            target = _target(shapes, [other.permute(places).sizes for other in layouts])
            back = sorted(range(len(places)), key=places.__getitem__)
            return None if target is None else [("Reshape", target), ("Transpose", back)]
    return None


def _place(layout: Layout, position: int) -> tuple[int, int, int]:
    """Where in the source an axis begins; one of size one stays behind the axis before it."""
    before = [(axis[0][0], -axis[0][1]) for axis in layout.axes[: position + 1] if axis]
    source, stride = before[-1] if before else (-1, 0)
    return source, stride, position


def _permuted_first(layouts: Sequence[Layout], wanted: Sequence[tuple[int, ...]]) -> list[Step] | None:
    """A transpose of the source, then a reshape that merges or splits its axes."""
    for layout in layouts:
        order = list(dict.fromkeys(atom[0] for axis in layout.axes for atom in axis))
        order += [axis for axis in range(len(layout.shape)) if axis not in order]
        if all(_in_order(other, order) for other in layouts):
            target = _target([tuple(other.shape[i] for i in order) for other in layouts], wanted)
            return None if target is None else [("Transpose", order), ("Reshape", target)]
    return None


def _target(shapes: Sequence[tuple[int, ...]], wanted: Sequence[tuple[int, ...]]) -> list[int] | None:
    """What a Reshape node is told, right at every size: a number, 0 for the source's own, once -1 for what remains."""
    target = []
    for axis, sizes in enumerate(zip(*wanted, strict=True)):
        own = all(axis < len(s) and s[axis] == n for s, n in zip(shapes, sizes, strict=True))
        target.append(sizes[0] if len(set(sizes)) == 1 else 0 if own else -1)
    return target if target.count(-1) <= 1 else None
