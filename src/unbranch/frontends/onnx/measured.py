"""``cost="measure"`` for ONNX models: regions and candidates cut out as models of their own and timed in a runtime."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from unbranch.affine import Affine
from unbranch.fold.facts import Fact
from unbranch.fold.graph import Node
from unbranch.fold.plan import Costs, WorkCosts
from unbranch.frontends.onnx.emit import Emitted, emit, extra_work, nodes_written
from unbranch.frontends.onnx.reading import Reading
from unbranch.frontends.onnx.sweep import Sweep
from unbranch.runtimes.sessions import onnx_runtime, openvino
from unbranch.runtimes.timing import Run, least_time

Prepare = Callable[[Path, Sequence[Tensor], int], Run]

RUNTIMES: dict[str, Prepare] = {"onnxruntime": onnx_runtime, "openvino": openvino}


def costs_of(cost: str, runtime: str, model: ir.Model, reading: Reading, sweep: Sweep) -> Costs:
    """What the planner compares by: ``"work"``, or ``"measure"`` in a runtime.

    Raises:
        ValueError: an unknown cost, or a runtime that runs no ONNX files.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime={runtime!r} runs no ONNX files: {', '.join(RUNTIMES)}")
    if cost == "work":
        return WorkCosts(
            reading.graph, partial(extra_work, reading.graph), partial(nodes_written, reading.graph)
        )
    if cost != "measure":
        raise ValueError(f"cost={cost!r} is neither 'work' nor 'measure'")
    return MeasuredCosts(model, reading, sweep, RUNTIMES[runtime])


@dataclass
class MeasuredCosts:
    """`Costs` in seconds, at the sizes of one sweep; equal parts are timed once."""

    model: ir.Model
    reading: Reading
    sweep: Sweep
    prepare: Prepare
    known: dict[Any, float] = field(default_factory=dict)
    unit: str = "time"

    def node(self, node: Node) -> float:
        """The node on its own."""
        return self._of_nodes((node,), tuple(dict.fromkeys(node.inputs)), node.outputs[0])

    def original(self, fact: Fact) -> float:
        """The region's nodes."""
        nodes = tuple(self.reading.graph.nodes[index] for index in sorted(fact.members))
        return self._of_nodes(nodes, (fact.source,), fact.value)

    def region(self, fact: Fact) -> float:
        """The nodes that would be written, with random weights."""
        operand = self.reading.graph.values[fact.source]
        key = ("written", fact.geometry, fact.axis, operand.shape, operand.dtype)
        if key not in self.known:
            g = fact.geometry
            weight = torch.rand(g.groups, g.out_channels // g.groups, g.in_channels // g.groups, *g.kernel)
            affine = Affine.of(g, weight, torch.rand(g.out_channels) if g.biased else None)
            numbers = count()
            source = self._value(fact.source, "source")
            made = emit(affine, fact, source, operand.dtype, "part", lambda name: f"{name}_{next(numbers)}")
            self.known[key] = self._time([source], made, made.output, (fact.source,))
        return self.known[key]

    def ops(self, fact: Fact) -> int:
        """What they take counts, not how many they are."""
        return 1

    def _of_nodes(self, nodes: tuple[Node, ...], sources: tuple[int, ...], value: int) -> float:
        key = self._key(nodes)
        if key not in self.known:
            inputs = [self._value(source, f"source_{source}") for source in sources]
            made, output = self._clone(nodes, dict(zip(sources, inputs, strict=True)), value)
            self.known[key] = self._time(inputs, made, output, sources)
        return self.known[key]

    def _value(self, number: int, name: str) -> ir.Value:
        operand = self.reading.graph.values[number]
        kind = ir.TensorType(ir.DataType.from_numpy(torch.empty(0, dtype=operand.dtype).numpy().dtype))
        return ir.Value(name=name, type=kind, shape=ir.Shape(operand.shape))

    def _clone(
        self, nodes: Sequence[Node], known: dict[int, ir.Value], value: int
    ) -> tuple[Emitted, ir.Value]:
        made = Emitted()
        values = {self.reading.values[number]: new for number, new in known.items()}
        for node in nodes:
            old = self.reading.nodes[node.index]
            for given in old.inputs:
                if given is not None and given not in values:
                    values[given] = self._constant(made, given)
            outputs = [ir.Value(name=f"v_{node.index}_{i}") for i in range(len(old.outputs))]
            inputs = [None if given is None else values[given] for given in old.inputs]
            made.nodes.append(
                ir.Node(old.domain, old.op_type, inputs, list(old.attributes.values()), outputs=outputs)
            )
            values.update(zip(old.outputs, outputs, strict=True))
        output = values[self.reading.values[value]]
        output.type = self._value(value, "type").type
        return made, output

    def _constant(self, made: Emitted, value: ir.Value) -> ir.Value:
        array = self.sweep.array(value)
        shape = self.sweep.shape_of(value)
        if array is None:  # a value from outside that is read for its size alone
            number = self.reading.numbers[value].index
            array = torch.zeros(shape or (), dtype=self.reading.graph.values[number].dtype).numpy()
        tensor = ir.tensor(array, name=f"constant_{len(made.constants)}")
        new = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        made.constants.append(new)
        return new

    def _time(self, inputs: list[ir.Value], made: Emitted, output: ir.Value, sources: Sequence[int]) -> float:
        graph = ir.Graph(
            inputs,
            [output],
            nodes=made.nodes,
            initializers=made.constants,
            opset_imports=dict(self.model.opset_imports),
            name="part",
        )
        examples = [self._example(source) for source in sources]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "part.onnx"
            ir.save(ir.Model(graph, ir_version=self.model.ir_version), path)
            return least_time(self.prepare(path, examples, 1))

    def _example(self, number: int) -> Tensor:
        operand = self.reading.graph.values[number]
        return torch.rand(operand.shape, generator=torch.Generator().manual_seed(0)).to(operand.dtype)

    def _key(self, nodes: Sequence[Node]) -> Any:
        """What the nodes are, up to the numbers in their constants and the names of their values."""
        names: dict[Any, int] = {}

        def of(value: ir.Value | None) -> Any:
            return (
                None if value is None else (names.setdefault(value, len(names)), self.sweep.shape_of(value))
            )

        described = []
        for node in nodes:
            old = self.reading.nodes[node.index]
            attributes = tuple(sorted((name, str(a.value)) for name, a in old.attributes.items()))
            described.append(
                (old.op_type, attributes, tuple(map(of, old.inputs)), tuple(map(of, old.outputs)))
            )
        return tuple(described)
