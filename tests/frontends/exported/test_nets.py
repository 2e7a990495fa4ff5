import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from tests.frontends.exported.nets import NETS, Net
from tests.support import fold_error, randomize
from unbranch.frontends.exported import reparameterize_exported
from unbranch.frontends.exported.reading import read_program
from unbranch.frontends.exported.sizes import Numbers

INPUT = (2, 4, 6, 9)


def drawn(name: str) -> torch.nn.Module:
    net = NETS[name][0]().eval().double()
    for norm in ("spectral norm",):
        if name == norm:
            net.train()(torch.randn(INPUT, dtype=torch.float64))
            net.eval()
    return randomize(net, torch.Generator().manual_seed(7)).eval() if name != "weight norm" else net


def exported(net: torch.nn.Module, dynamic: bool) -> ExportedProgram:
    x = torch.randn(INPUT, dtype=torch.float64)
    sizes = dict.fromkeys((0, 2, 3), Dim.AUTO)
    return torch.export.export(net, (x,), dynamic_shapes=({"x": sizes} if dynamic else None))


def check(net: torch.nn.Module, program: ExportedProgram, sizes: list[tuple[int, ...]]) -> None:
    """The program and the network, run from the same state, twice each: what they return and what they write."""
    theirs, ours = copy.deepcopy(net), program.module()
    for size in sizes:
        x = torch.randn(size, dtype=torch.float64)
        first, second = x.clone(), x.clone()
        with torch.no_grad():
            expected: Any = pytree.tree_leaves(theirs(first))
            found: Any = pytree.tree_leaves(ours(second))
        assert len(expected) == len(found)
        assert all(fold_error(b, a) <= 1e-10 for a, b in zip(expected, found, strict=True))
        assert torch.equal(first, second)


def fold_and_check(
    net: torch.nn.Module, program: ExportedProgram, sizes: list[tuple[int, ...]], places: int
) -> None:
    before = str(program.graph)
    folded, report = reparameterize_exported(program)
    assert str(program.graph) == before
    check(net, folded, sizes)
    assert len(report.folded) == places, str(report)
    again, nothing = reparameterize_exported(folded)
    assert not nothing.changed, str(nothing)
    assert str(again.graph) == str(folded.graph)


# Said by torch when it exports a conditional whose branches read what requires a gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", NETS)
def test_folded_program_agrees(name: str) -> None:
    _, places, dynamic = NETS[name]
    torch._dynamo.reset()
    net = drawn(name)
    program = exported(net, dynamic)
    sizes = [INPUT, (3, 4, 11, 8)] if dynamic else [INPUT, INPUT]
    fold_and_check(net, program, sizes, places)
    fold_and_check(net, program.run_decompositions(), sizes, places)


@pytest.mark.parametrize(
    "name", ["written by its old name", "slab of values", "square view", "crop", "tokens"]
)
def test_static_program_agrees(name: str) -> None:
    net, places = drawn(name), NETS[name][1]
    fold_and_check(net, exported(net, False), [INPUT, INPUT], places)


def taken_apart(net: Net, x: Tensor) -> Tensor:
    """Height and channels are equally many in the example, and for that size alone this leaves everything in its place."""
    y = net.conv(x).flatten(1, 2).view(-1, x.shape[2], 6, x.shape[3])
    return (y * 2 + 1).relu()


def test_what_holds_for_the_example_alone_is_left() -> None:
    net = randomize(Net(taken_apart).eval().double(), torch.Generator().manual_seed(3)).eval()
    program = exported(net, True)
    folded, report = reparameterize_exported(program)
    check(net, folded, [INPUT, (3, 4, 11, 8)])
    assert any("for the example's sizes only" in refused.reason for refused in report.refused)


def test_a_size_asked_inside_is_asked_of_the_result() -> None:
    """Export derives sizes from the inputs; other passes may ask the value itself."""
    net = drawn("inner size")
    program = exported(net, True)
    nodes = {node.name: node for node in program.graph.nodes}
    with program.graph.inserting_after(nodes["conv2d"]):
        asked = program.graph.call_function(torch.ops.aten.sym_size.int, (nodes["conv2d"], 2))
    asked.meta["val"] = nodes["add_1"].meta["val"]
    nodes["add_1"].replace_all_uses_with(asked)
    fold_and_check(net, program, [INPUT, (3, 4, 11, 8)], 1)


def test_what_is_drawn_is_drawn_in_every_run() -> None:
    folded, _ = reparameterize_exported(exported(drawn("drawn"), True))
    assert any(str(node.target) == "aten.rand.default" and node.users for node in folded.graph.nodes)


@pytest.mark.parametrize(
    ("name", "op", "why"),
    [
        ("base read after a view is written", "mul_", "read through another view"),
        ("input written", "mul_", "writes to an input"),
        ("slab of values", "copy_", "depends on the input"),
    ],
)
def test_writes_that_stay_say_why(name: str, op: str, why: str) -> None:
    program = exported(drawn(name), True)
    reading = read_program(program, Numbers([n for n in program.graph.nodes if n.op == "placeholder"]))
    (written,) = (n for n in reading.graph.nodes if n.spelling.startswith(f"aten.{op}"))
    assert written.reason is not None
    assert why in written.reason
