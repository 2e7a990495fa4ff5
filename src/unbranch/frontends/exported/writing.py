"""Write a planned program: a copy of its graph with convolutions for regions, and a signature that fits."""

import copy
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, Node

from unbranch.frontends.exported.calls import Calls
from unbranch.frontends.exported.memory import written_placeholders
from unbranch.frontends.exported.placing import SIZE, Place
from unbranch.frontends.exported.sizes import Numbers
from unbranch.frontends.exported.strides import settle
from unbranch.frontends.exported.values import Reading
from unbranch.frontends.modules.emit import parameters

HELD = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
"""Inputs that the program itself holds."""


def is_core(program: ExportedProgram) -> bool:
    """The program was decomposed into core ops."""
    return program.dialect != "TRAINING"


class Writer:
    """Holds the copy while it is written; places are written last first."""

    def __init__(self, program: ExportedProgram, reading: Reading, numbers: Numbers) -> None:
        self.program, self.reading, self.numbers = program, reading, numbers
        self.graph = Graph()
        self.copies: dict[Node, Node] = {}
        output = self.graph.graph_copy(program.graph, self.copies)
        last = program.graph.output_node()
        self.copies[last] = self.graph.output(output)
        self.copies[last].meta = dict(last.meta)
        for node, copied in self.copies.items():
            copied.name = node.name  # the copy shuns names of Python's own, such as `input`
        self.positions = {copied: reading.positions[node] for node, copied in self.copies.items()}
        specs = program.graph_signature.input_specs
        self.specs = {self.copies[node]: spec for node, spec in zip(program.graph.nodes, specs, strict=False)}
        self.after_parameters = next(
            n
            for n in self.graph.nodes
            if n not in self.specs or self.specs[n].kind is not InputKind.PARAMETER
        )
        self.fake_mode = next(
            n.meta["val"].fake_mode for n in program.graph.nodes if isinstance(n.meta.get("val"), FakeTensor)
        )
        self.state = dict(program.state_dict)
        self.taken = {name for spec in specs if spec.target for name in _with_owners(spec.target)}
        self.unused = {node for node in self.graph.nodes if not node.users}
        self.gone: set[Node] = set()
        self.names: list[tuple[Node, Node]] = []

    def write(self, place: Place, owner: str, meta: dict[str, Any]) -> None:
        """One convolution; its parameters are named after ``owner``, a module's path; its nodes carry ``meta``."""
        fact = place.fact
        affine = fact.evaluate(self.reading.graph.device)
        dtype = self.reading.graph.values[fact.value].dtype
        weight, bias = parameters(affine, dtype, self._like(place), place.linear)
        base = self._free_name(owner)
        inputs = [self._parameter(f"{base}.weight", weight)]
        if bias is not None:
            inputs.append(self._parameter(f"{base}.bias", bias))
        at, end = self.copies[place.at], self.copies[place.end]
        calls = Calls(self.graph, is_core(self.program), meta)
        with self.graph.inserting_before(at):
            result = first = calls.map(affine.geometry, self.copies[place.source], *inputs)
        with self.graph.inserting_before(end):
            for move in place.moves:
                result = calls.repeat(move, result, self.copies)
        self.positions |= dict.fromkeys(calls.made, self.reading.positions[place.at])
        self._hand_over(place, first, result)
        self.names.append((result, end))
        self.gone |= {self.copies[node] for node in place.gone}

    def _like(self, place: Place) -> Tensor | None:
        """The largest weight of the region: the new one is stored as it is."""
        read = {n for node in place.gone for n in node.all_input_nodes if n.op == "placeholder"}
        targets = [self.specs[self.copies[n]].target for n in read]
        stored = [self.program.state_dict[t] for t in targets if t in self.program.state_dict]
        weights = [tensor for tensor in stored if isinstance(tensor, Tensor) and tensor.ndim > 2]
        return max(weights, key=lambda weight: weight.numel(), default=None)

    def _free_name(self, owner: str) -> str:
        stem = f"{owner}.reparameterized" if owner else "reparameterized"
        name, count = stem, 0
        while name in self.taken:
            count += 1
            name = f"{stem}_{count}"
        self.taken.add(name)
        return name

    def _parameter(self, target: str, parameter: nn.Parameter) -> Node:
        """A placeholder for a new parameter, after the others."""
        with self.graph.inserting_before(self.after_parameters):
            node = self.graph.placeholder(f"p_{target.replace('.', '_')}")
        node.target = node.name
        node.meta["val"] = self.fake_mode.from_tensor(parameter, static_shapes=True)
        self.specs[node] = InputSpec(InputKind.PARAMETER, TensorArgument(node.name), target)
        self.state[target] = parameter
        return node

    def _hand_over(self, place: Place, first: Node, result: Node) -> None:
        """Whoever read the value reads the result, and sizes that were asked inside are asked of what stays."""
        leaving = {self.copies[node] for node in place.gone}
        for name, since in place.names:
            held = self.copies[name]
            for user in list(held.users):
                if self.positions[user] > since and user not in leaving:
                    user.replace_input_with(held, result)
        for question, (node, axis) in place.sizes.items():
            old = self.copies[question]
            with self.graph.inserting_before(old):
                new = self.graph.call_function(SIZE, (first if node is None else self.copies[node], axis))
            new.meta = dict(old.meta)
            self.positions[new] = self.positions[old]
            old.replace_all_uses_with(new)
            leaving.add(old)
        self.gone |= leaving

    def finish(self) -> ExportedProgram:
        """Erase what nobody needs any more and make the program."""
        self._erase()
        for node, old in reversed(self.names):
            node.name = old.name
            settle(self.graph, node, old.meta["val"], self.numbers)
        written = {self.specs[self.copies[node]].target for node in written_placeholders(self.program)}
        gone = self._drop_placeholders(written)
        specs = [self.specs[node] for node in self.graph.nodes if node.op == "placeholder"]
        dropped = {id(self.state[target]) for target in gone & self.state.keys()}
        named = {spec.target for spec in specs}

        def kept(stored: dict[str, Any]) -> dict[str, Any]:
            held = {k: v for k, v in stored.items() if k in named or (k not in gone and id(v) not in dropped)}
            return {k: v.clone() if k in written else v for k, v in held.items()}

        return ExportedProgram(
            root=self.program.graph_module,
            graph=self.graph,
            graph_signature=ExportGraphSignature(specs, self._output_specs()),
            state_dict=kept(self.state),
            range_constraints=dict(self.program.range_constraints),
            module_call_graph=copy.deepcopy(self.program.module_call_graph),
            example_inputs=self.program.example_inputs,
            constants=kept(self.program.constants),
            verifiers=list(self.program.verifiers),
        )

    def _erase(self) -> None:
        """Members of regions, then what only they needed: constants on the way, sizes."""
        for node in reversed(self.graph.nodes):
            idle = not node.users and node not in self.unused and node.op in ("call_function", "get_attr")
            if node in self.gone or (idle and not node.is_impure()):
                self.graph.erase_node(node)

    def _drop_placeholders(self, written: set[str | None]) -> set[str]:
        """Take out the parameters and buffers that lost their last reader, and what their modules held beside them unread."""
        idle = [n for n in self.graph.nodes if n.op == "placeholder" and not n.users]
        idle = [n for n in idle if self.specs[n].kind in HELD and self.specs[n].target not in written]
        used = {_owner(s.target) for n, s in self.specs.items() if n.users}
        emptied = {_owner(self.specs[n].target) for n in idle if n not in self.unused} - used
        gone = set()
        for node in idle:
            target = self.specs[node].target or ""
            if node not in self.unused or _owner(target) in emptied:
                self.graph.erase_node(node)
                gone.add(target)
        return gone

    def _output_specs(self) -> list[OutputSpec]:
        """The program's, under the names that the outputs have now."""
        values: Any = self.graph.output_node().args[0]
        specs = []
        for spec, value in zip(self.program.graph_signature.output_specs, values, strict=True):
            named = isinstance(spec.arg, TensorArgument) and isinstance(value, Node)
            specs.append(
                OutputSpec(spec.kind, TensorArgument(value.name) if named else spec.arg, spec.target)
            )
        return specs


def _owner(target: str | None) -> str:
    return (target or "").rpartition(".")[0]


def _with_owners(target: str) -> list[str]:
    """A dotted name and those of the modules that it lies in."""
    parts = target.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
