"""Read an exported program into the neutral graph.

Constants are parameters, buffers, lifted tensors and what is computed from them alone; they are worked out once, where an op wants one.
Sizes stand for numbers, and an op that takes its meaning from one is left alone, unless it only moves elements.
"""

import operator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node

from unbranch.fold.graph import operands_in
from unbranch.frontends.exported.memory import (
    DETACHES,
    Cell,
    Fixed,
    Storage,
    aliased_by,
    merge,
    written_by,
    written_placeholders,
)
from unbranch.frontends.exported.nodes import mapped, number, operand
from unbranch.frontends.exported.shapes import SHAPED_LIKE, is_whole, slab
from unbranch.frontends.exported.sizes import Numbers
from unbranch.frontends.exported.values import (
    SIZED,
    Number,
    Part,
    Reading,
    Several,
    Spread,
    cells_in,
)
from unbranch.frontends.exported.writes import Writes


def read_program(program: ExportedProgram, numbers: Numbers) -> Reading:
    """The graph of a program, its symbolic sizes replaced by ``numbers``."""
    return _Reader(program, numbers).run()


class _Reader(Writes):
    def run(self) -> Reading:
        """Every node in turn."""
        written = written_placeholders(self.program)
        specs = iter(self.program.graph_signature.input_specs)
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, next(specs), node in written)
            elif node.op == "get_attr":
                self._attribute(node)
            elif node.op == "call_function":
                self._call(node)
            else:
                self.reading.graph.kept.update(o.index for o in operands_in(self.arguments(node.args)))
        self._keep_named()
        return self.reading

    def _keep_named(self) -> None:
        """Values that a preserved module call's signature names are read from outside."""
        named = {
            argument.name
            for entry in self.program.module_call_graph
            if entry.signature is not None
            for argument in (*entry.signature.inputs, *entry.signature.outputs)
            if isinstance(argument, TensorArgument)
        }
        for node, item in self.items.items():
            if node.name in named:
                self.reading.graph.kept.update(o.index for o in operands_in(self.argument(node, item)))

    # What a node is

    def _placeholder(self, node: Node, spec: InputSpec, is_written: bool) -> None:
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            self.items[node] = self.number(value)
            return
        tensor = None
        if not is_written and spec.kind is not InputKind.USER_INPUT and spec.target is not None:
            stored = self.program.state_dict.get(spec.target, self.program.constants.get(spec.target))
            tensor = stored if isinstance(stored, Tensor) else None
        if tensor is None:
            self.new_cell(node, self.fresh(value), Storage(external=True))
        else:
            self.fix(node, Fixed(tensor=tensor.detach()), Storage(external=True))

    def _attribute(self, node: Node) -> None:
        held = operator.attrgetter(str(node.target))(self.program.graph_module)
        if isinstance(held, Tensor):
            self.fix(node, Fixed(tensor=held.detach()), Storage(external=True))
        else:
            self.items[node] = held

    def _call(self, node: Node) -> None:
        value = node.meta.get("val")
        if node in self.shape_only:
            self.items[node] = self._part(node)
            self.reading.passing.add(node)
        elif node.target is operator.getitem:
            self._pick(node)
        elif str(node.target) == DETACHES or (str(node.target) == "aten.slice.Tensor" and is_whole(node)):
            self.rename(node, self.items[operand(node)])
        elif str(node.target) == "aten.slice_scatter.default" and is_whole(node):
            self.passed_on(node, self.items[operand(node, 1)])
        elif written_by(node):
            self.write(node)
        elif str(node.target) in SHAPED_LIKE:
            self._shaped_like(node)
        elif isinstance(value, Tensor | list | tuple):
            self._compute(node)
        else:
            self._measure(node, value)

    def _measure(self, node: Node, value: Any) -> None:
        """A node that makes no tensor: a size, an assertion, or a number read out of a value."""
        self.items[node] = self.number(value)
        if isinstance(node.target, OpOverload) and not str(node.target).startswith(
            ("aten.sym_", "aten._assert_tensor_metadata")
        ):
            operands = list(operands_in(self.arguments((node.args, node.kwargs))))
            if operands:
                result = self.reading.graph.value(())
                self.append(node, operands, {}, [result], "it reads a value's numbers")
        elif node.all_input_nodes:
            self.reading.passing.add(node)

    def _part(self, node: Node) -> Any:
        if isinstance(self.items[operand(node)], Spread):
            self.arguments(operand(node))
        source = self.items[operand(node)]
        if isinstance(source, Cell):
            whole = tuple(range(operand(node).meta["val"].ndim))
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

    def _pick(self, node: Node) -> None:
        """One of several results."""
        results = self.items[operand(node)]
        if isinstance(results, Several):
            self.fix(node, Fixed(operator.getitem, (results.value, node.args[1])), results.storage)
            return
        position = node.args[1]
        item = results[position] if isinstance(results, list) and isinstance(position, int) else results
        self.items[node] = item
        if isinstance(item, Cell):
            self.name(node, item)
            source = self.reading.members.get(operand(node))
            if source is not None:
                self.reading.members[node] = source

    # Ops

    def _compute(self, node: Node) -> None:
        """An op without side effects: a constant, an op that the table knows, or an opaque one."""
        items = [self.items[n] for n in node.all_input_nodes]
        storage = merge([i.storage for n in aliased_by(node) for i in cells_in(self.items[n])])
        sized = any(isinstance(item, Number) for item in items)
        if (
            not sized
            and _is_repeatable(node)
            and all(isinstance(i, Cell) and isinstance(i.value, Fixed) for i in items)
        ):
            frozen = mapped((node.args, node.kwargs), lambda n: self.items[n].value)
            value = Fixed(node.target, *frozen)
            if isinstance(node.meta["val"], Tensor):
                self.fix(node, value, storage)
            else:
                self.items[node] = Several(value, storage)
                self.reading.fixed.add(node)
        elif str(node.target) == "aten.expand.default" and (held := self.constant(items[0])) is not None:
            self.items[node] = Spread(held)
            self.reading.fixed.add(node)
        else:
            self.results(node, self.called(node, sized), storage)

    def _shaped_like(self, node: Node) -> None:
        """A value of which only the shape comes from the first operand: a copy of the second, or one number."""
        args = list(node.args[1:]) + [
            node.kwargs[k] for k in ("fill_value", "value", "src") if k in node.kwargs
        ]
        source = args[0] if args else SHAPED_LIKE[str(node.target)]
        if not isinstance(source, Node):
            self.items[node] = Spread(number(source))
            self.reading.fixed.add(node)
            return
        constant = self.constant(self.items[source])
        if constant is not None:
            self.items[node] = Spread(constant)
            self.reading.fixed.add(node)
            return
        operands = list(operands_in(self.arguments(source)))
        if not operands:
            self.results(node, self.append_all(node, [], {}, SIZED), Storage())
            return
        value = self.fresh(node.meta["val"])
        same = operands[0].shape == value.shape and operands[0].dtype == value.dtype
        self.append(node, operands, {}, [value], None if same else "it broadcasts", "aten.clone.default")
        self.new_cell(node, value, Storage())


def _is_repeatable(node: Node) -> bool:
    """The same in every run, and nothing but tensors."""
    results = node.meta["val"] if isinstance(node.meta["val"], list | tuple) else [node.meta["val"]]
    if not isinstance(node.target, OpOverload) or not all(isinstance(r, Tensor) for r in results):
        return False
    if str(node.target).startswith(("aten.empty", "aten.new_empty")):
        return False
    return torch.Tag.nondeterministic_seeded not in node.target.tags
