"""Every ATen spelling of the table, drawn from the table itself: its record means what torch computes, and nothing unknown binds."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.examples import EXAMPLES, UNRUN, Call, X
from tests.ops.meaning import meaning
from unbranch.affine import NotLinear
from unbranch.fold.graph import operands_in
from unbranch.ops import TABLE, Identity, Operand, read
from unbranch.ops.table import reads

SPELLINGS = sorted(spelling for spelling in TABLE if spelling.startswith("aten."))
DRAWS = 12


def mapped(tree: Any, change: Callable[[X], Any]) -> Any:
    if isinstance(tree, X):
        return change(tree)
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(item, change) for item in tree)
    if isinstance(tree, dict):
        return {key: mapped(item, change) for key, item in tree.items()}
    return tree


def as_operands(call: Call) -> tuple[list[Any], dict[str, Any], list[Tensor]]:
    """The call as a reader sees it, and the tensors behind its operands in order."""
    values: list[Tensor] = []

    def operand(x: X) -> Operand:
        values.append(x.value)
        return Operand(tuple(x.value.shape), x.value.dtype, len(values) - 1)

    args, kwargs = mapped(list(call.args), operand), mapped(call.kwargs, operand)
    order = [o.index for o in operands_in([args, kwargs])]
    return args, kwargs, [values[i] for i in order]


def _brief(tree: Any) -> Any:
    """Arguments with shapes in place of numbers."""
    if isinstance(tree, Tensor):
        return tuple(tree.shape)
    if isinstance(tree, list | tuple):
        return [_brief(item) for item in tree]
    return _brief(tree.value) if isinstance(tree, X) else tree


def run(spelling: str, call: Call) -> list[Tensor]:
    _, name, overload = spelling.split(".")
    op = getattr(getattr(torch.ops.aten, name), overload)
    args, kwargs = mapped([list(call.args), call.kwargs], lambda x: x.value.clone())
    result = op(*args, **kwargs)
    return list(result) if isinstance(result, list | tuple) else [result]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_aten_record_means_what_torch_computes(spelling: str) -> None:
    assert spelling in EXAMPLES or spelling in UNRUN, "add an example of it to tests/ops/examples.py"
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        call = (EXAMPLES | UNRUN)[spelling](random.Random(seed))
        args, kwargs, values = as_operands(call)
        records = read(spelling, args, kwargs)
        computed = run("aten.native_batch_norm.default" if spelling in UNRUN else spelling, call)
        assert records[0] is not None
        assert len(records) == len(computed) or spelling in UNRUN
        for record, expected in zip(records, computed, strict=False):
            if record is not None:
                found = meaning(record, values)
                said = f"seed {seed}: {_brief(call.args)} {_brief(call.kwargs)}: {type(record).__name__}"
                assert found.shape == expected.shape, said
                assert float((found - expected).abs().max()) <= 1e-10, said


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_unknown_argument_is_refused(spelling: str) -> None:
    args, kwargs, _ = as_operands((EXAMPLES | UNRUN)[spelling](random.Random(0)))
    with pytest.raises(NotLinear, match="unknown_attribute"):
        read(spelling, args, kwargs | {"unknown_attribute": 1})
    with pytest.raises(NotLinear):
        read(spelling, [*args, *[1] * 12], kwargs)


def test_an_example_of_what_is_not_read_is_noticed() -> None:
    assert set(EXAMPLES) | set(UNRUN) == set(SPELLINGS)


def test_a_spelling_that_nobody_reads_is_refused() -> None:
    with pytest.raises(NotLinear, match=r"aten\.relu\.default is not a linear op"):
        read("aten.relu.default", [Operand((1, 4, 5, 5))], {})


def test_two_readers_of_one_spelling_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"two readers for aten\.add\.Tensor: add and again"):

        @reads("aten.add.Tensor")
        def again(self: Operand, other: Operand) -> Identity:
            raise AssertionError

    assert TABLE["aten.add.Tensor"].reader.__name__ == "add"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_reader_takes_what_the_schema_of_its_op_has(spelling: str) -> None:
    """Names and order of the arguments are the schema's, so a call by position and a call by name read alike."""
    _, name, overload = spelling.split(".")
    schema = getattr(getattr(torch.ops.aten, name), overload)._schema
    theirs = [argument.name for argument in schema.arguments]
    ours = list(TABLE[spelling].signature.parameters)
    known = [argument for argument in theirs if argument in ours]
    assert ours == known, f"{schema}"
    for argument in schema.arguments:
        if argument.name not in ours:
            assert argument.has_default_value(), f"{argument.name} of {schema} cannot be left out"
        elif argument.has_default_value():
            if argument.name == "memory_format":
                continue  # how the elements lie in memory is no part of what an op computes
            ours_default = TABLE[spelling].signature.parameters[argument.name].default
            assert _same_default(ours_default, argument.default_value), (
                f"{argument.name} of {schema}: {ours_default}"
            )


def _same_default(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, list):
        alike = theirs[:1] == [ours] and len(set(theirs)) == 1
        return alike or list(theirs) == (list(ours) if isinstance(ours, list | tuple) else ours)
    return ours == theirs
