"""Fold an exported program: read it, plan, write a copy."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import Any, TypeAlias

from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from unbranch.affine import NotLinear
from unbranch.fold.facts import Fact
from unbranch.fold.interpret import Interpretation, interpret
from unbranch.fold.plan import Plan, plan
from unbranch.fold.refusals import refusals
from unbranch.fold.report import Folded, Refused, Report, Totals
from unbranch.fold.totals import totals
from unbranch.frontends.collecting import uncollected
from unbranch.frontends.dense import dense_work, totals_written
from unbranch.frontends.exported.placing import Place, find
from unbranch.frontends.exported.reading import read_program
from unbranch.frontends.exported.sizes import Numbers
from unbranch.frontends.exported.values import Reading
from unbranch.frontends.exported.writing import Writer, is_core
from unbranch.frontends.measured import costs_of
from unbranch.frontends.modules.emit import native_padding
from unbranch.frontends.padding import padding_work

Where: TypeAlias = str | Callable[[str, Node], bool] | None

NORMS = ("aten.batch_norm.default", "aten.native_batch_norm.default", "aten._native_batch_norm_legit")
"""Ops that take running statistics fourth and sixth whether they train."""


@dataclass(eq=False)
class Folding:
    """A program that was read and planned, ready to be reported or written; places stand last first."""

    program: ExportedProgram
    reading: Reading
    numbers: Numbers
    known: Interpretation
    places: list[Place]
    plan: Plan

    def report(self, applied: bool) -> Report:
        """What folds and what does not."""
        graph = self.reading.graph
        before = totals(graph, graph.nodes, self._parameters(self.program.graph.nodes))
        folded, after = [], before
        for place in self.places:
            inside = totals(graph, [graph.nodes[i] for i in place.fact.members], self._parameters(place.gone))
            removed = replace(inside, ops=inside.ops - len(place.moves))
            added = totals_written(place.fact)
            added = replace(added, ops=added.ops + (padding_beside(self.reading, place.fact) > 0))
            after = after + Totals(
                added.ops - removed.ops, added.multiply_adds - removed.multiply_adds, added.parameters
            )
            name = self._path(place.fact.members) or place.end.name
            folded.append(Folded(name, str(place.fact.geometry), "graph", removed, added, place.end.name))
        gone = self.reading.fixed.union(*(place.gone for place in self.places))
        staying = [n for n in self.program.graph.nodes if n not in gone]
        after = replace(after, parameters=after.parameters - before.parameters + self._parameters(staying))
        refused = [Refused(self._place(fact.members), why) for fact, why in self.plan.left]
        refused += [Refused(self._place([node.index]), why) for node, why in refusals(self.known)]
        folded.reverse()
        return Report(before, after, tuple(folded), tuple(dict.fromkeys(refused)), (), applied)

    def apply(self) -> ExportedProgram:
        """The copy."""
        writer = Writer(self.program, self.reading, self.numbers)
        for place in self.places:
            stack = common_stack(self._nodes(place.fact.members))
            meta = {key: value for key, value in place.end.meta.items() if key == "stack_trace"}
            writer.write(place, self._path(place.fact.members), meta | {"nn_module_stack": stack})
        return writer.finish()

    def _nodes(self, members: Iterable[int]) -> list[Node]:
        return [self.reading.nodes[i] for i in sorted(members)]

    def _path(self, members: Iterable[int]) -> str:
        """The module that all of the nodes ran in; nothing where that is the program itself."""
        return next((path for path, _ in reversed(common_stack(self._nodes(members)).values())), "")

    def _place(self, members: Iterable[int]) -> str:
        """That, or the last of them."""
        return self._path(members) or self._nodes(members)[-1].name

    def _parameters(self, nodes: Iterable[Node]) -> int:
        """Elements of the parameters that nodes read, constants on the way included; a placeholder reads itself."""
        found: set[Node] = set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += [n for n in node.all_input_nodes if n in self.reading.fixed]
        return sum(node.meta["val"].numel() for node in found & self._owned)

    @cached_property
    def _owned(self) -> set[Node]:
        """The parameters."""
        specs = zip(self.program.graph.nodes, self.program.graph_signature.input_specs, strict=False)
        return {node for node, spec in specs if spec.kind is InputKind.PARAMETER}


def common_stack(nodes: Sequence[Node]) -> dict[str, Any]:
    """The module calls that all nodes ran in, outermost first: key to (path, class)."""
    stacks = [node.meta["nn_module_stack"] for node in nodes if node.meta.get("nn_module_stack")]
    if not stacks:
        return {}
    shared = {}
    for level in zip(*(stack.items() for stack in stacks), strict=False):
        if any(item != level[0] for item in level):
            break
        shared[level[0][0]] = level[0][1]
    return shared


def prepare(
    program: ExportedProgram, where: Where = None, cost: str = "work", runtime: str = "torch"
) -> Folding:
    """Read and plan; nothing is changed.

    Raises:
        ValueError: the program was exported in training mode, or an option is none of those known.
    """
    _check_mode(program)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    numbers = Numbers(placeholders)
    reading = read_program(program, numbers)
    known = interpret(reading.graph)
    other = None
    if not numbers.is_static:
        other = interpret(read_program(program, Numbers(placeholders, spread=True)).graph)
    found: dict[int, Place] = {}

    def check(facts: Sequence[Fact]) -> dict[int, str]:
        """Why some of the chosen regions cannot be placed."""
        refused = {}
        for fact in facts:
            try:
                if not _selected(where, [reading.nodes[i] for i in fact.members]):
                    raise NotLinear("not selected by where")
                if other is not None and not _holds(other, fact):
                    raise NotLinear("it is linear for the example's sizes only")
                found[id(fact)] = find(reading, fact)
            except NotLinear as error:
                refused[id(fact)] = str(error)
        return refused

    beside = partial(work_beside, reading, is_core(program))
    chosen = plan(known, costs_of(cost, runtime, reading.graph, beside), check)
    return Folding(program, reading, numbers, known, [found[id(fact)] for fact in chosen.regions], chosen)


def _holds(other: Interpretation, fact: Fact) -> bool:
    """The same map with other sizes."""
    return any(
        same.axis == fact.axis and same.geometry == fact.geometry and same.members == fact.members
        for same in other.of(fact.value, fact.source)
        if same.border is None and same.pending == fact.pending
    )


def _check_mode(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        if (
            str(node.target).startswith(NORMS)
            and len(node.args) > 5
            and node.args[3] is not None
            and node.args[5] is True
        ):
            path = next((path for path, _ in reversed(common_stack([node]).values())), "")
            raise ValueError(
                f"{path or node.name} is a batch norm in training mode, which uses the batch's statistics: "
                "call model.eval() and export again"
            )


def _selected(where: Where, nodes: Sequence[Node]) -> bool:
    """``where`` names a node of the region, or a module that it runs in."""
    if where is None:
        return True
    for node in nodes:
        paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        if callable(where):
            if where(paths[-1] if paths else "", node):
                return True
        elif any(fnmatchcase(name, where) for name in (node.name, *paths)):
            return True
    return False


def work_beside(reading: Reading, core: bool, fact: Fact) -> float:
    """What is done beside the map's own work: a padding, or the zeros of a dense matrix and, in a core program, the views around it.

    Views cost one, so that they are not written again where they stand already.
    """
    if fact.geometry.rank == 0:
        return dense_work(fact) + (core and len(reading.graph.values[fact.source].shape) > 2)
    return padding_beside(reading, fact)


def padding_beside(reading: Reading, fact: Fact) -> float:
    """What a padding costs that torch's op cannot do itself: one more than where it stands already, so that it is not done again."""
    g = fact.geometry
    zeros = g.mode == "zeros" or not g.is_padded
    if g.rank == 0 or g.transposed or (zeros and native_padding(g) is not None):
        return 0.0
    return padding_work(reading.graph, fact) + 1


@uncollected()
def reparameterize_exported(
    program: ExportedProgram, where: Where = None, cost: str = "work", runtime: str = "torch"
) -> tuple[ExportedProgram, Report]:
    """A program in which every linear region that pays is one convolution, and what was done: ``folded(x) == program(x)``.

    The program given is not changed. Inputs, outputs, dynamic shapes, buffers and the names of what was not folded stay; tensors that
    were not folded are shared, those that the program writes to are copied.

    Args:
        program: Exported in eval mode, decomposed or not.
        where: Which places may fold: a glob on node names and module paths, or a function ``(path, node) -> bool``.
        cost: ``"work"``: never more multiply-adds and memory traffic than before; ``"measure"``: timed in ``runtime``.
        runtime: ``"torch"``, ``"onnxruntime"`` or ``"openvino"``.

    Raises:
        ValueError: training mode, or an unknown option.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
        >>> program = torch.export.export(net, (torch.zeros(1, 3, 9, 9),))
        >>> reparameterize_exported(program)[0].module()(torch.zeros(1, 3, 9, 9)).shape
        torch.Size([1, 8, 7, 7])
    """
    folding = prepare(program, where, cost, runtime)
    return folding.apply(), folding.report(applied=True)


@uncollected()
def explain_exported(
    program: ExportedProgram, where: Where = None, cost: str = "work", runtime: str = "torch"
) -> Report:
    """What `reparameterize_exported` would fold, what it would leave alone, and why.

    Example:
        >>> program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2, 3),))
        >>> explain_exported(program).changed
        False
    """
    return prepare(program, where, cost, runtime).report(applied=False)
