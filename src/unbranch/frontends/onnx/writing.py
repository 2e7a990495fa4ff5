"""Write the chosen convolutions into the model, and take out what nobody needs any more."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from unbranch.fold.facts import Fact
from unbranch.frontends.onnx.checking import name_of
from unbranch.frontends.onnx.emit import emit, integers, node_of
from unbranch.frontends.onnx.reading import Reading, main_node
from unbranch.frontends.onnx.sizes import SizeReaders, inner_values
from unbranch.frontends.onnx.views import HANDED_ON, Step, Views


class Writer:
    """Replaces regions one by one, the last in the graph first."""

    def __init__(self, model: ir.Model, reading: Reading, sizes: SizeReaders, views: Views) -> None:
        self.graph, self.reading, self.sizes, self.views = model.graph, reading, sizes, views
        self.names = set(_names(model.graph))
        self.vanished: list[ir.Value] = []

    def write(self, fact: Fact) -> int:
        """The region as new nodes; how many."""
        source, value = self.reading.values[fact.source], self.reading.values[fact.value]
        assert source is not None
        assert value is not None
        producer = value.producer()
        assert producer is not None
        name = name_of(main_node(self.reading, fact))
        affine = fact.evaluate(self.reading.graph.device)
        dtype = self.reading.graph.values[fact.value].dtype
        made = emit(affine, fact, source, dtype, name, self._unique)
        for constant in made.constants:
            self.graph.register_initializer(constant)
        replayed = self._replay(fact, made.output)
        self.graph.insert_before(producer, [*made.nodes, *replayed])
        self._take_over(value, (replayed or made.nodes)[-1].outputs[0])
        self.vanished += [value, *inner_values(fact, self.reading)]
        return len(made.nodes)

    def finish(self) -> int:
        """Take out the old nodes, put views in order, then take out every constant that has lost its readers.

        How many nodes that move something the order of the views has saved.
        """
        if not self.vanished:
            return 0
        self._drop_dead()
        readers = [node for value in self.vanished for node in value.consumers()]
        for node in list(self.sizes.computed_from_size(readers)):
            self._pin(node)
        self._drop_dead()
        before = list(self.graph)
        self.views.tidy(self.graph, self._view)
        self._drop_dead()
        after = set(self.graph)
        spared = [node for node in before if node not in after and self.views.moves_something(node)]
        inputs = set(self.graph.inputs)
        for name, value in list(self.graph.initializers.items()):
            if value not in inputs and not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]
        return len(spared) - sum(node.op_type not in HANDED_ON for node in after.difference(before))

    def _unique(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self.names:
            number += 1
            candidate = f"{name}_{number}"
        self.names.add(candidate)
        return candidate

    def _replay(self, fact: Fact, value: ir.Value) -> list[ir.Node]:
        """The layout nodes at the region's end, once more behind the new node."""
        nodes = []
        for index in fact.pending:
            old = self.reading.nodes[index]
            node = ir.Node(
                old.domain,
                old.op_type,
                [value, *old.inputs[1:]],
                list(old.attributes.values()),
                name=self._unique(name_of(old)),
                version=old.version,
            )
            value = node.outputs[0]
            value.type = old.outputs[0].type
            nodes.append(node)
            self.views.repeated(old, node)
        return nodes

    def _view(self, old: ir.Value, source: ir.Value, steps: list[Step]) -> ir.Value:
        """``old`` as a few views of ``source``."""
        producer = old.producer()
        assert producer is not None
        value = source
        for kind, numbers in steps:
            name = self._unique(f"{name_of(producer)}.view")
            if kind == "Reshape":
                shape = integers(numbers, f"{name}.shape")
                self.graph.register_initializer(shape)
                node = node_of("Reshape", [value, shape], name)
            else:
                node = node_of(kind, [value], name, **({"perm": numbers} if numbers else {}))
            self.graph.insert_before(producer, node)
            value = node.outputs[0]
            value.type = source.type
        if value is source:
            old.replace_all_uses_with(source)
        else:
            self._take_over(old, value)
        return value

    def _take_over(self, old: ir.Value, new: ir.Value) -> None:
        """``new`` gets everything that was said of ``old``, and its readers."""
        new.type, new.shape, new.doc_string = old.type, old.shape, old.doc_string
        new.metadata_props.update(old.metadata_props)
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = None
        new.name = name

    def _drop_dead(self) -> None:
        for node in reversed(list(self.graph)):
            if not any(value.uses() or value.is_graph_output() for value in node.outputs):
                self.graph.remove(node, safe=True)

    def _pin(self, node: ir.Node) -> None:
        """What is computed from the size of a value that is gone, and is a constant, becomes one."""
        for output in node.outputs:
            array = self.sizes.constant(output)
            if array is not None and (output.uses() or output.is_graph_output()):
                output.replace_all_uses_with(self._constant(output, array), replace_graph_outputs=True)

    def _constant(self, value: ir.Value, array: np.ndarray) -> ir.Value:
        name = self._unique(f"{value.name}.value")
        tensor = ir.tensor(array, name=name)
        constant = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.graph.register_initializer(constant)
        return constant


def _names(graph: ir.Graph) -> Iterable[str]:
    """Every name in use, of values and of nodes, in subgraphs too."""
    for value in (*graph.inputs, *graph.initializers.values()):
        yield str(value.name)
    for node in graph.all_nodes():
        yield str(node.name)
        for value in (*node.outputs, *(v for v in node.inputs if v is not None)):
            yield str(value.name)
