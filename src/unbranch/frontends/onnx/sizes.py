"""Who reads the size of a value that will vanish: such readers must vanish with it, or their answer must be a constant."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from unbranch.affine import NotLinear
from unbranch.fold.facts import Fact
from unbranch.frontends.onnx.checking import name_of
from unbranch.frontends.onnx.constants import Free
from unbranch.frontends.onnx.reading import Reading
from unbranch.frontends.onnx.sweep import Sweep


@dataclass
class SizeReaders:
    """Answers for one model, from what its sweeps know."""

    free: Free
    sweeps: list[Sweep]

    def constant(self, value: ir.Value) -> np.ndarray | None:
        """The numbers of a free value that are the same at every size."""
        if value not in self.free.values:
            return None
        arrays = [sweep.array(value) for sweep in self.sweeps]
        first = arrays[0]
        if first is None or any(a is None or not np.array_equal(a, first) for a in arrays[1:]):
            return None
        return first

    def check(self, fact: Fact, reading: Reading) -> None:
        """Refuse a region whose inner values' sizes something outside needs.

        Raises:
            NotLinear: with who it is.
        """
        members = {reading.nodes[index] for index in fact.members}
        gone = members - {reading.nodes[index] for index in fact.pending}
        inside = inner_values(fact, reading)
        for node in self.computed_from_size(
            node for value in inside for node in value.consumers() if node not in members
        ):
            if node in gone:
                continue
            if not self.free.is_free(node) and node not in self.free.idle:
                raise NotLinear(f"a size inside it is read by {name_of(node)}")
            for output in node.outputs:
                if output.is_graph_output() and self.constant(output) is None:
                    raise NotLinear(f"a size inside it is the output {output.name}")

    def computed_from_size(self, nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
        """The nodes, and those behind them up to constants and to nodes that read elements too."""
        waiting, seen = list(nodes), set()
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            yield node
            if self.free.is_free(node) or node in self.free.idle:
                for output in node.outputs:
                    if self.constant(output) is None:
                        waiting.extend(output.consumers())


def inner_values(fact: Fact, reading: Reading) -> list[ir.Value]:
    """What the region computes on the way."""
    outputs = (output for index in sorted(fact.members) for output in reading.graph.nodes[index].outputs)
    inside = [reading.values[output] for output in outputs if output != fact.value]
    return [value for value in inside if value is not None]
