"""Fold an ONNX model: read it, plan, write a copy."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeAlias, overload

import onnx
import onnx_ir as ir
import torch

from unbranch.affine import NotLinear
from unbranch.fold.facts import Fact
from unbranch.fold.interpret import Interpretation, interpret
from unbranch.fold.plan import Plan, plan
from unbranch.fold.refusals import refusals
from unbranch.fold.report import Folded, Refused, Report, Totals
from unbranch.fold.totals import totals, totals_of_map
from unbranch.frontends.collecting import uncollected
from unbranch.frontends.dense import totals_written
from unbranch.frontends.onnx.checking import check_model, name_of
from unbranch.frontends.onnx.constants import Free, find_free
from unbranch.frontends.onnx.emit import check_emittable, kind_of
from unbranch.frontends.onnx.files import from_any, to_like
from unbranch.frontends.onnx.measured import costs_of
from unbranch.frontends.onnx.reading import Reading, main_node, read_graph
from unbranch.frontends.onnx.sizes import SizeReaders
from unbranch.frontends.onnx.standins import stand_ins
from unbranch.frontends.onnx.sweep import Sweep
from unbranch.frontends.onnx.views import Views
from unbranch.frontends.onnx.writing import Writer
from unbranch.ops import Reshape, Slice, Take, Write

Where: TypeAlias = str | Callable[[str, ir.Node], bool] | None


@dataclass(eq=False)
class Folding:
    """A model of our own that was read and planned, ready to be reported on and rewritten."""

    model: ir.Model
    free: Free
    sweeps: list[Sweep]
    readings: list[Reading]
    interpretations: list[Interpretation]
    plan: Plan
    notes: tuple[str, ...]

    def run(self, applied: bool) -> Report:
        """Rewrite the model and say what was done, or, with ``applied`` False, what would be."""
        reading, before = self.readings[0], parameters(self.model)
        writer = Writer(self.model, reading, SizeReaders(self.free, self.sweeps), Views(self.readings))
        folded, after = [], totals(reading.graph, reading.graph.nodes, before)
        start = after
        for fact in self.plan.regions:
            output = reading.values[fact.value]
            name = "" if output is None else str(output.name)
            place, weights, made = self._place(fact), self._weights(fact), writer.write(fact)
            inside = totals(reading.graph, [reading.graph.nodes[i] for i in fact.members], weights)
            removed = replace(inside, ops=inside.ops - len(fact.pending))
            dense = not fact.geometry.is_diagonal
            added = replace(totals_written(fact) if dense else totals_of_map(fact), ops=made)
            after = after + Totals(added.ops - removed.ops, added.multiply_adds - removed.multiply_adds)
            folded.append(Folded(place, str(fact.geometry), kind_of(fact), removed, added, name))
        spared = writer.finish()
        folded.reverse()
        after = replace(after, ops=after.ops - spared, parameters=parameters(self.model))
        notes = self.notes
        if spared:
            notes += (f"nodes that only rearranged values, or changed nothing, and are not needed: {spared}",)
        return Report(start, after, tuple(folded), tuple(self._refused()), notes, applied)

    def _refused(self) -> list[Refused]:
        """What the plan left alone, and the ops that would be linear but for the way they are used."""
        own = self.readings[0].nodes
        found = [Refused(self._place(fact), why) for fact, why in self.plan.left]
        found += [Refused(name_of(own[node.index]), why) for node, why in refusals(self.interpretations[0])]
        return list(dict.fromkeys(found))

    def _place(self, fact: Fact) -> str:
        return name_of(main_node(self.readings[0], fact))

    def _weights(self, fact: Fact) -> int:
        """The elements of the floating-point constants that the region's nodes read, computed ones at their own size."""
        found: dict[ir.Value, int] = {}
        for index in fact.members:
            for value in self.readings[0].nodes[index].inputs:
                if (
                    value is not None
                    and value in self.free.values
                    and _is_float(self.sweeps[0].dtype_of(value))
                ):
                    found[value] = torch.Size(self.sweeps[0].shape_of(value) or ()).numel()
        return sum(found.values())


def parameters(model: ir.Model) -> int:
    """The elements of the main graph's floating-point tensors."""
    constants = (node.attributes.get("value") for node in model.graph if node.op_type == "Constant")
    tensors = [held.value for held in constants if held is not None and held.type is _TENSOR]
    tensors += [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return sum(tensor.size for tensor in tensors if _is_float(tensor.dtype))


_TENSOR = ir.AttributeType.TENSOR


def _is_float(dtype: ir.DataType | None) -> bool:
    return dtype is not None and dtype.is_floating_point()


def prepare(model: ir.Model, where: Where, cost: str, runtime: str) -> Folding:
    """Read and plan ``model``, which is ours to change later.

    Raises:
        OnnxError: the model is one that cannot be folded.
        ValueError: an option is none of those known.
    """
    check_model(model)
    free = find_free(model.graph)
    sweeps: list[Sweep] = []
    for numbers in stand_ins(model.graph):
        sweeps.append(Sweep(model, numbers, free, sweeps[0] if sweeps else None))
    readings = [read_graph(model, sweep) for sweep in sweeps]
    known = [interpret(reading.graph) for reading in readings]
    sizes = SizeReaders(free, sweeps)
    opset = model.opset_imports[""]

    def check(facts: Sequence[Fact]) -> dict[int, str]:
        """Why some of the chosen regions cannot be placed."""
        refused = {}
        for fact in facts:
            try:
                _check_selected(where, readings[0], fact)
                check_emittable(fact, opset)
                for reading, other in zip(readings[1:], known[1:], strict=True):
                    _check_same(fact, reading, other)
                sizes.check(fact, readings[0])
            except NotLinear as error:
                refused[id(fact)] = str(error)
        return refused

    chosen = plan(known[0], costs_of(cost, runtime, model, readings[0], sweeps[0]), check)
    return Folding(model, free, sweeps, readings, known, chosen, tuple(_notes(model)))


def _check_selected(where: Where, reading: Reading, fact: Fact) -> None:
    nodes = [reading.nodes[index] for index in sorted(fact.members)]
    if where is None or (callable(where) and any(where(name_of(node), node) for node in nodes)):
        return
    if callable(where) or not any(fnmatchcase(name_of(node), where) for node in nodes):
        raise NotLinear("not selected by where")


def _check_same(fact: Fact, reading: Reading, other: Interpretation) -> None:
    """The region is the same map at another size, its numbers included where they could follow from the size."""
    same = [
        found
        for found in other.of(fact.value, fact.source)
        if (found.axis, found.geometry, found.members, found.pending, found.border is None)
        == (fact.axis, fact.geometry, fact.members, fact.pending, True)
    ]
    if not same:
        raise NotLinear("it is the same convolution only at some sizes of the input")
    records = [record for index in fact.members for record in reading.graph.nodes[index].records]
    if fact.members & reading.sized or any(
        isinstance(record, Reshape | Slice | Take | Write) for record in records
    ):
        here, there = fact.evaluate(reading.graph.device), same[0].evaluate(reading.graph.device)
        if not torch.equal(here.weight, there.weight) or (
            here.bias is not None and there.bias is not None and not torch.equal(here.bias, there.bias)
        ):
            raise NotLinear("its weights follow from the size of the input")


def _notes(model: ir.Model) -> list[str]:
    notes = []
    inputs = set(model.graph.inputs)
    fed = [value.name for value in model.graph.initializers.values() if value in inputs]
    if fed:
        notes.append(
            f"{len(fed)} initializers are inputs too ({fed[0]}), so they may be fed and are no constants"
        )
    called = Counter(str(node.op_type) for node in model.graph if node.op_identifier() in model.functions)
    if called:
        notes.append(f"calls of the model's own functions are left alone: {', '.join(sorted(called))}")
    return notes


@overload
def reparameterize_onnx(
    model: onnx.ModelProto, where: Where = ..., cost: str = ..., runtime: str = ...
) -> tuple[onnx.ModelProto, Report]: ...
@overload
def reparameterize_onnx(
    model: ir.Model, where: Where = ..., cost: str = ..., runtime: str = ...
) -> tuple[ir.Model, Report]: ...
@uncollected()
def reparameterize_onnx(
    model: onnx.ModelProto | ir.Model,
    where: Where = None,
    cost: str = "work",
    runtime: str = "onnxruntime",
) -> tuple[onnx.ModelProto | ir.Model, Report]:
    """A model in which every linear region that pays is one convolution, and what was done: ``folded(x) == model(x)``.

    The model given is not changed. Names of inputs, outputs and whatever was not folded, opset, metadata, symbolic dimensions,
    functions and subgraphs stay. A region's value keeps its name. Folds run in float64 and are cast to the model's type last.

    Args:
        model: Opset 13 or newer, not quantized. Symbolic dimensions may be any size.
        where: Which places may fold: a glob on node names (``"/stage1/*"``), or a function ``(name, node) -> bool``.
        cost: ``"work"``: never more multiply-adds and memory traffic than before; ``"measure"``: timed in ``runtime``.
        runtime: ``"onnxruntime"`` or ``"openvino"``.

    Raises:
        OnnxError: the model cannot be folded: one line says why and what to do.
        ValueError: an unknown option.

    Source: the ONNX operator specification, opset 13 to 28; RepVGG, Ding et al. (CVPR 2021), generalised to any affine region.

    Example:
        >>> text = "<ir_version: 8, opset_import: ['' : 13]> g (float[1,4,9,9] x) => (float[1,4,9,9] y) {t = Add(x, x) y = Neg(t)}"
        >>> folded, report = reparameterize_onnx(onnx.parser.parse_model(text))
        >>> [node.op_type for node in folded.graph.node], report.after.ops
        (['Mul'], 1)
    """
    ours = from_any(model)
    report = prepare(ours, where, cost, runtime).run(applied=True)
    return to_like(ours, model), report


@uncollected()
def explain_onnx(
    model: onnx.ModelProto | ir.Model,
    where: Where = None,
    cost: str = "work",
    runtime: str = "onnxruntime",
) -> Report:
    """What `reparameterize_onnx` would fold, what it would leave alone, and why.

    Example:
        >>> text = "<ir_version: 8, opset_import: ['' : 13]> g (float[1,4,9,9] x) => (float[1,4,9,9] y) {y = Relu(x)}"
        >>> explain_onnx(onnx.parser.parse_model(text)).changed
        False
    """
    return prepare(from_any(model), where, cost, runtime).run(applied=False)
