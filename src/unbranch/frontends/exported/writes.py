"""In-place ops, understood as the values that they leave behind.

One whose memory something else still looks at afterwards stays as it is, and so does one that writes to an input, a parameter or a buffer.
A constant copied into a slice of a value is a write of one slab: borders are filled so.
"""

from torch import Tensor
from torch.fx import Node

from unbranch.frontends.exported.memory import Cell, Fixed, Storage, merge, written_by
from unbranch.frontends.exported.nodes import number, operand
from unbranch.frontends.exported.shapes import FILLS_IN_PLACE
from unbranch.frontends.exported.values import Number, Part, Spread, Values, cells_in, tensor_of
from unbranch.ops import Operand


class Writes(Values):
    """Values, and what overwrites them."""

    def write(self, node: Node) -> None:
        """An op that overwrites memory."""
        if str(node.target) in FILLS_IN_PLACE and isinstance(self.items[operand(node)], Part):
            self._fill(node)
            return
        for spread in (n for n in written_by(node) if isinstance(self.items[n], Spread)):
            self.arguments(spread)
        targets = [cell for n in written_by(node) for cell in cells_in(self.items[n])]
        written = merge([cell.storage for cell in targets])
        why = self._why_stays(node, targets[:1], written)
        sized = any(isinstance(self.items[n], Number) for n in node.all_input_nodes)
        if why is None:
            results = self.called(node, sized)
        else:
            results = self.append_all(node, self.arguments(node.args), self.arguments(dict(node.kwargs)), why)
        if len(targets) == 1 and isinstance(results, Operand):
            cell = targets[0]
            self.items[node] = cell
            self._hold(cell, results, node)
        else:
            for cell in targets:
                self._overwritten(cell, node)
            self.results(node, results, written)
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
        value = self.fresh(cell.nodes[0].meta["val"])
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
        part = self.items[operand(node)]
        cell = part.cell
        source = node.args[1] if len(node.args) > 1 else 0.0
        constant = self.constant(self.items[source]) if isinstance(source, Node) else number(source)
        why = self._why_stays(node, [cell], cell.storage)
        cuts: list[tuple[int, int, int | None]] = list(part.cuts or ())
        if why is None and len(cuts) != 1:
            why = "it writes to a part that is not one slab"
        if why is None and constant is None:
            why = "what is written depends on the input"
        if why is not None or not isinstance(cell.value, Operand) or constant is None:
            self.append_all(node, self.arguments(node.args[1:]), {}, why or "it writes to a constant")
            self._overwritten(cell, node)
        else:
            axis, start, stop = cuts[0]
            value = self.fresh(cell.nodes[0].meta["val"])
            first, last, _ = slice(start, stop).indices(value.shape[axis])
            slab = [last - first if i == axis else n for i, n in enumerate(value.shape)]
            written = _lifted(constant, part, axis).expand(slab)
            self.append(
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


def _lifted(constant: Fixed | float, part: Part, axis: int) -> Tensor:
    """What is written, with the axis back that a select took away."""
    source = tensor_of(constant)
    after = sum(a > axis for a in part.axes)
    return source if axis in part.axes or source.ndim < after else source.unsqueeze(source.ndim - after)
