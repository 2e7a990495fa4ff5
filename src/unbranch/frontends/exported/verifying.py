"""Certify a folded program: both run on the same inputs, and again at other sizes where the program's shapes are dynamic."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from unbranch.fold.certificate import Certificate, fold_error
from unbranch.fold.precision import full_precision
from unbranch.fold.report import Report
from unbranch.fold.verify import RUN_ERRORS, Sizes, verify_modules
from unbranch.frontends.exported.placing import ASSERTION
from unbranch.frontends.exported.sizes import Numbers
from unbranch.frontends.modules.inputs import ExampleInputs, arguments

CHANGES = (
    lambda n, i: max(2, n - n // 7 - i) if n > 48 else n + 3 + i,
    lambda n, i: n + 32 * (1 + i % 2),
    lambda n, i: 2 * n,
)
"""Other numbers for the symbols: odd ones for the borders' sake, then some that keep divisibility."""


@full_precision()
def verify_exported(
    before: ExportedProgram,
    after: ExportedProgram,
    example_inputs: ExampleInputs = None,
    sizes: Sizes = None,
    report: Report | None = None,
) -> Certificate:
    """Run both on the same inputs and certify ``max|a - b| / max(1, max|b|)`` of every output: 1e-10 in float64, 1e-5 in float32.

    Args:
        before: The program as it was.
        after: The folded one.
        example_inputs: A tensor, a sequence of arguments or a mapping; None takes those the program was exported with.
        sizes: Other spatial sizes to run too; by default one more that the program's dynamic shapes allow, or a note that they are static.
        report: The fold's report: the certificate then names the folded place whose output differs most.

    Raises:
        ValueError: the program holds no example inputs and none were given.

    Example:
        >>> program = torch.export.export(torch.nn.Conv2d(3, 8, 3), (torch.zeros(1, 3, 9, 9),))
        >>> bool(verify_exported(program, program))
        True
    """
    if example_inputs is not None:
        args, kwargs = arguments(example_inputs)
    elif before.example_inputs is None:
        raise ValueError("the program holds no example inputs: pass example_inputs")
    else:
        args, kwargs = before.example_inputs
    first, second = _runnable(before), _runnable(after)
    others = None if sizes is not None else [*_other_sizes(before, args, kwargs)]
    certificate = verify_modules(first, second, args, kwargs, sizes, None, others)
    if others == []:
        certificate = replace(
            certificate, notes=(*certificate.notes, "no second size: the program's shapes are static")
        )
    if report is not None:
        certificate = replace(certificate, worst_place=_worst_place(first, second, args, kwargs, report))
    return certificate


def _runnable(program: ExportedProgram) -> GraphModule:
    """The program as a module that can be cast: without its assertions about dtypes."""
    module = copy.deepcopy(program.module())
    nn.Module.train(module, False)
    for node in list(module.graph.nodes):
        if str(node.target) == ASSERTION:
            module.graph.erase_node(node)
    module.recompile()
    return module


def _other_sizes(
    program: ExportedProgram, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[tuple[Any, Any]]:
    """The inputs at other values of the program's symbols: the first that it takes.

    They are tried on a copy of its own, for a program may count its calls.
    """
    specs = zip(program.graph.nodes, program.graph_signature.input_specs, strict=False)
    placeholders = [node for node, spec in specs if spec.kind is InputKind.USER_INPUT]
    numbers = Numbers(placeholders)
    if numbers.is_static:
        return
    run = _runnable(program)
    for change in CHANGES:
        other = Numbers(placeholders)
        for i, (symbol, number) in enumerate(numbers.symbols.items()):
            bounds = program.range_constraints.get(symbol)
            wanted = change(number, i)
            other.symbols[symbol] = (
                wanted if bounds is None else int(min(max(wanted, bounds.lower), bounds.upper))
            )
        inputs = _resized(placeholders, other, args, kwargs)
        try:
            with torch.no_grad():
                run(*inputs[0], **inputs[1])
        except RUN_ERRORS:
            continue
        yield inputs
        return


def _resized(placeholders: Sequence[Node], numbers: Numbers, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Every input repeated or cut to its shape under ``numbers``."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    resized = []
    for leaf, node in zip(leaves, placeholders, strict=True):
        resized.append(
            _stretched(leaf, [numbers(n) for n in node.meta["val"].shape])
            if isinstance(leaf, Tensor)
            else leaf
        )
    return pytree.tree_unflatten(resized, spec)


def _stretched(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeated or cut along each axis."""
    for axis, size in enumerate(shape):
        if size != tensor.shape[axis]:
            at = torch.arange(size, device=tensor.device) % max(1, tensor.shape[axis])
            tensor = tensor.index_select(axis, at)
    return tensor


class _Watch(Interpreter):
    """Runs a module and keeps what some of its nodes returned."""

    def __init__(self, module: GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self.names = names
        self.caught: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        """One node."""
        result = super().run_node(n)
        if n.name in self.names and isinstance(result, Tensor):
            self.caught[n.name] = result.clone()
        return result


def _worst_place(
    before: GraphModule, after: GraphModule, args: Any, kwargs: Any, report: Report
) -> str | None:
    """The folded place whose value differs most, with the stored weights."""
    places = {folded.output: folded.place for folded in report.folded}
    caught = []
    for module in (before, after):
        watch = _Watch(copy.deepcopy(module), set(places))
        leaves = [copy.deepcopy(leaf) for leaf in pytree.tree_leaves((args, kwargs))]
        with torch.no_grad():
            watch.run(*leaves, enable_io_processing=False)
        caught.append(watch.caught)
    errors = {
        place: fold_error(caught[1][n], caught[0][n])
        for n, place in places.items()
        if n in caught[0] and n in caught[1]
    }
    worst = max(errors, key=lambda place: errors[place], default=None)
    return None if worst is None else f"{worst} ({errors[worst]:.1e})"
