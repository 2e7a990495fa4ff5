"""Who reads the size of a value that will vanish: such readers must vanish with it, or their answer must be a constant."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from unbranch.affine import NotLinear
from unbranch.fold.facts import Fact
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
        gone = {reading.nodes[index] for index in fact.members - set(fact.pending)}
        for value in inner_values(fact, reading):
            for reader in self._outside(value, gone):
                raise NotLinear(f"the size of {value.name} inside it is read by {reader}")

    def _outside(self, value: ir.Value, gone: set[ir.Node]) -> Iterator[str]:
        """Who needs what is computed from the value's size and is no constant."""
        for node in value.consumers():
            if node in gone:
                continue
            if not self.free.is_free(node):
                if value in self.free.values:
                    yield node.name or node.op_type
                continue
            for output in node.outputs:
                if self.constant(output) is not None:
                    continue
                if output.is_graph_output():
                    yield f"the output {output.name}"
                yield from self._outside(output, gone)


def inner_values(fact: Fact, reading: Reading) -> list[ir.Value]:
    """What the region computes on the way."""
    outputs = (output for index in sorted(fact.members) for output in reading.graph.nodes[index].outputs)
    inside = [reading.values[output] for output in outputs if output != fact.value]
    return [value for value in inside if value is not None]
