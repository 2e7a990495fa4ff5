"""``cost="measure"``: what each candidate takes in the runtime that will run it, timed on this machine.

A region as it stands is the recorded calls, run on their own; the candidate in its place is the layer that would be written. Both
are timed in the same runtime on one thread, equal ones once. What a runtime fuses by itself, such as a norm into a convolution, is in the
time of the region as it stands, so a fold is kept only where it gains something beyond that.
"""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from unbranch.affine import Affine, Geometry
from unbranch.fold.facts import Fact
from unbranch.fold.graph import Graph, Node
from unbranch.fold.plan import Costs, WorkCosts
from unbranch.fold.replay import Replay
from unbranch.frontends.modules.emit import emit
from unbranch.ops import Operand
from unbranch.runtimes.modules import torch_run
from unbranch.runtimes.sessions import onnx_runtime, openvino
from unbranch.runtimes.timing import Run, least_time

RUNTIMES = ("torch", "onnxruntime", "openvino")


@runtime_checkable
class Clock(Protocol):
    """Seconds that a module takes on some inputs."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
        """The least of a few runs."""
        ...


def clock_of(runtime: str) -> Clock:
    """The clock of a runtime.

    Raises:
        ValueError: there is none of that name.
        ModuleNotFoundError: it is not installed.
    """
    if runtime == "torch":
        return lambda module, inputs: least_time(torch_run(module, inputs))
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime={runtime!r} is none of {', '.join(RUNTIMES)}")
    return lambda module, inputs: _file_time(
        module, inputs, onnx_runtime if runtime == "onnxruntime" else openvino
    )


def _file_time(module: nn.Module, inputs: tuple[Tensor, ...], prepare: Callable[..., Run]) -> float:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's talk of its own future
        path = Path(folder) / "part.onnx"
        program = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
        if program is None:
            raise RuntimeError("the exporter returned no program")
        program.save(path, external_data=False)
        return least_time(prepare(path, inputs, 1))


@dataclass
class MeasuredCosts:
    """`Costs` in seconds; the geometry and the calls of a region are its key, so equal blocks are timed once."""

    graph: Graph
    clock: Clock
    known: dict[Any, float] = field(default_factory=dict)
    unit: str = "time"

    def node(self, node: Node) -> float:
        """The call on its own."""
        return self._timed(self._key((node,)), lambda: self._replay((node,), node.inputs, node.outputs[0]))

    def original(self, fact: Fact) -> float:
        """The recorded calls, one after the other."""
        nodes = tuple(self.graph.nodes[index] for index in sorted(fact.members))
        return self._timed(self._key(nodes), lambda: self._replay(nodes, (fact.source,), fact.value))

    def region(self, fact: Fact) -> float:
        """The layer that would be written, with random weights."""
        shape, dtype = self.graph.values[fact.source].shape, self.graph.values[fact.value].dtype
        key = ("layer", fact.geometry, shape, dtype)
        return self._timed(
            key, lambda: (_layer(fact.geometry, dtype).to(self.graph.device), (self._example(fact.source),))
        )

    def ops(self, fact: Fact) -> int:
        """What they take counts, not how many they are."""
        return 1

    def _timed(self, key: Any, build: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]) -> float:
        if key not in self.known:
            module, inputs = build()
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                self.known[key] = self.clock(module.eval(), inputs)
            finally:
                torch.set_num_threads(threads)
        return self.known[key]

    def _replay(
        self, nodes: tuple[Node, ...], sources: tuple[int, ...], value: int
    ) -> tuple[nn.Module, tuple[Tensor, ...]]:
        distinct = tuple(dict.fromkeys(sources))
        return Replay(nodes, distinct, value), tuple(self._example(source) for source in distinct)

    def _example(self, value: int) -> Tensor:
        operand = self.graph.values[value]
        drawn = torch.rand(operand.shape, generator=torch.Generator().manual_seed(0))
        return drawn.to(self.graph.device, operand.dtype)

    def _key(self, nodes: tuple[Node, ...]) -> Any:
        """What the calls are, up to the numbers in their constants and the names of their values."""
        names: dict[int, int] = {}
        return tuple(
            (node.spelling, _shape_of(node.args, names), _shape_of(dict(node.kwargs), names))
            for node in nodes
        )


def _shape_of(tree: Any, names: dict[int, int]) -> Any:
    if isinstance(tree, Operand):
        return "value", names.setdefault(tree.index, len(names)), tree.shape, tree.dtype
    if isinstance(tree, Tensor):
        return "constant", tuple(tree.shape), tree.dtype
    if isinstance(tree, list | tuple):
        return tuple(_shape_of(item, names) for item in tree)
    if isinstance(tree, dict):
        return tuple((key, _shape_of(item, names)) for key, item in tree.items())
    return str(tree)


def costs_of(
    cost: str,
    runtime: str,
    graph: Graph,
    extra: Callable[[Fact], float],
    made: Callable[[Fact], int] = lambda fact: 1 + len(fact.pending),
) -> Costs:
    """What the planner compares by: ``"work"``, with a front end's ``extra`` and ``made``, or ``"measure"`` in a runtime.

    Raises:
        ValueError: an unknown cost or runtime.
    """
    clock = clock_of(runtime)
    if cost == "work":
        return WorkCosts(graph, extra, made)
    if cost != "measure":
        raise ValueError(f"cost={cost!r} is neither 'work' nor 'measure'")
    return MeasuredCosts(graph, clock)


def _layer(geometry: Geometry, dtype: torch.dtype) -> nn.Module:
    g = geometry
    weight = torch.rand(g.groups, g.out_channels // g.groups, g.in_channels // g.groups, *g.kernel)
    affine = Affine.of(g, weight, torch.rand(g.out_channels) if g.biased else None)
    return emit(affine, dtype, linear=g.rank == 0)
