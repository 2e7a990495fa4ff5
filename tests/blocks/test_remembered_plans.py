"""A sum plans anew whatever happened to its branches between two steps, and only then."""

import copy
import gc
import math
import pickle
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from tests.blocks.beside import branched, drawn, needs_kernels, results, sum_of, worst
from tests.support import fold_error, norms
from unbranch.blocks import MobileOneBlock, Sum
from unbranch.blocks.merged import compiled, remembered, roads


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class TwiceAsMuch(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def made(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    """A block whose branches are all merged, and an input for it."""
    block = drawn(
        lambda stride: MobileOneBlock(8, 8, 1, stride, num_branches=2, training="merged"), 1, generator
    )
    return block, torch.randn(4, 8, 7, 5, dtype=torch.float64, generator=generator) + 1


def first(block: nn.Module) -> nn.Conv2d:
    return next(module for module in block.modules() if isinstance(module, nn.Conv2d))


def second(block: nn.Module) -> nn.Module:
    return list(norms(block))[1]


def replace_kernel(block: nn.Module) -> None:
    conv = first(block)
    conv.weight = nn.Parameter(conv.weight.detach().flip(0).clone())


def replace_statistics(block: nn.Module) -> None:
    second(block).running_mean = torch.full((8,), 3.0, dtype=torch.float64)


def replace_branch(block: nn.Module) -> None:
    branches = sum_of(block)
    name = branches.names[0]
    branches.add_module(name, copy.deepcopy(branches.get_submodule(name)).requires_grad_(False))
    next(branches.get_submodule(name).parameters()).mul_(2)


def replace_norm(block: nn.Module) -> None:
    branch = next(module for module in block.modules() if type(module) is nn.Sequential)
    name = [*branch._modules][-1]
    norm = branch.get_submodule(name)
    branch.add_module(name, copy.deepcopy(norm).eval())


def another_class(block: nn.Module) -> None:
    first(block).__class__ = TwiceAsMuch


def another_forward(block: nn.Module) -> None:
    conv = first(block)
    conv.forward = partial(nn.Conv2d._conv_forward, conv, weight=conv.weight.detach(), bias=None)


def other_children(block: nn.Module) -> None:
    branches = sum_of(block)
    branches._modules = {name: copy.deepcopy(child) for name, child in branches._modules.items()}
    first(block).weight.mul_(2)


def other_attributes(block: nn.Module) -> None:
    conv = first(block)
    conv.__dict__ = copy.deepcopy(conv).__dict__
    conv.weight.mul_(2)


def exchanged_names(block: nn.Module) -> None:
    """In the same order."""
    norm = second(block)
    weight, bias = norm.weight, norm.bias
    del norm.weight, norm.bias
    norm.bias, norm.weight = weight, bias


def kernels_in_a_list(block: nn.Module) -> None:
    first(block).log = [torch.ones(3)]
    block(torch.ones(4, 8, 7, 5, dtype=torch.float64))
    first(block).log[0] = torch.zeros(3)


def counters_of(value: Tensor) -> Callable[[nn.Module], object]:
    return lambda block: setattr(second(block), "num_batches_tracked", value.clone())


def average_of_a_float_counter(block: nn.Module) -> None:
    counters_of(torch.tensor(5.0))(block)
    second(block).momentum = None


def no_statistics(block: nn.Module) -> None:
    second(block).track_running_stats = False


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "nothing": lambda block: None,
    "a value": lambda block: first(block).weight.data.mul_(2),
    "a kernel": replace_kernel,
    "its data": lambda block: setattr(first(block).weight, "data", first(block).weight.data.flip(1)),
    "statistics": replace_statistics,
    "a branch": replace_branch,
    "a norm": replace_norm,
    "a frozen norm": lambda block: second(block).eval(),
    "eps": lambda block: setattr(second(block), "eps", 0.7),
    "momentum": lambda block: setattr(second(block), "momentum", 0.9),
    "averages of all": lambda block: setattr(second(block), "momentum", None),
    "no statistics": no_statistics,
    "a hook": lambda block: first(block).register_forward_hook(lambda *given: 2 * given[-1]),
    "a class": another_class,
    "a forward": another_forward,
    "a parametrization": lambda block: parametrize.register_parametrization(first(block), "weight", Double()),
    "pruning": lambda block: prune.random_unstructured(first(block), "weight", 0.5),
    "a bias": lambda block: setattr(first(block), "bias", nn.Parameter(torch.ones(8, dtype=torch.float64))),
    "all branches": other_children,
    "all attributes": other_attributes,
    "names": exchanged_names,
    "what a list holds": kernels_in_a_list,
    "a float counter": counters_of(torch.tensor(5.0)),
    "the average of a float counter": average_of_a_float_counter,
    "counters": counters_of(torch.tensor([5, 6])),
    "no counter": lambda block: setattr(second(block), "num_batches_tracked", None),
    "a mode": lambda block: setattr(sum_of(block), "merging", "branches"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_happens_between_two_steps_counts(change: str, generator: torch.Generator) -> None:
    block, x = made(generator)
    results(block, x)
    assert sum_of(block)._plans.known is not None
    with torch.no_grad():
        CHANGES[change](block)
    twin = branched(block)
    assert worst(results(block, x), results(twin, x)) <= 1e-9


def test_a_branch_that_is_none_is_missed(generator: torch.Generator) -> None:
    """As where each is called by itself."""
    block, x = made(generator)
    block(x)
    setattr(sum_of(block), sum_of(block).names[0], None)
    for one in (block, branched(block)):
        with pytest.raises(TypeError, match="not callable"):
            one(x)


def test_what_is_the_same_is_planned_once(generator: torch.Generator) -> None:
    block, x = made(generator)
    branches = sum_of(block)
    chosen = branches.training_plan(x)
    optimizer = torch.optim.SGD(block.parameters(), 0.1)
    for _ in range(2):
        results(block, x)
        optimizer.step()
    assert branches.training_plan(x.clone()) is chosen
    assert branches.training_plan(x[:2]) is not chosen
    branches.merging = "auto"
    assert branches.training_plan(x) is not chosen
    branches.merging = "merged"
    assert branches.training_plan(x) is chosen


def test_a_cast_block_is_planned_for_its_own_type(generator: torch.Generator) -> None:
    """A module casts its parameters' data, and they stay the same objects."""
    block, x = made(generator)
    results(block, x)
    block.float()
    assert all("not torch.float64" in why for why in sum_of(block).training_plan(x).apart.values())
    results(block, x.float())
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.data = parameter.data.double()
    assert sum_of(block).training_plan(x.float()).merged == ()


@needs_kernels
def test_a_border_that_is_written_to(generator: torch.Generator) -> None:
    """In a list, which stays the same one."""
    block = drawn(lambda stride: MobileOneBlock(8, 8, 3, stride, groups=8, training="merged"), 1, generator)
    dense = first(block)
    dense.padding = [1, 1]
    x = torch.randn(4, 8, 7, 5, dtype=torch.float64, generator=generator)
    assert "dense0" in sum_of(block).training_plan(x).merged
    dense.padding[:] = 0, 0
    assert "dense0" not in sum_of(block).training_plan(x).merged


def test_no_more_is_remembered_than_shapes_in_turn(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "SHAPES", 3)
    block, x = made(generator)
    twin = branched(block)
    for count in (4, 3, 2, 4, 3, 2, 4, 3, 2):
        for width in (5, 4):
            given = x[:count, :, :, :width]
            assert fold_error(block(given), twin(given)) <= 1e-9
            assert len(sum_of(block)._plans.known.plans) <= 3


@pytest.mark.parametrize("way", ["alone", "a hook", "a forward", "an attribute"])
def test_nothing_outlives_its_sum(way: str, generator: torch.Generator) -> None:
    """Not either where a branch knows the model that it is in."""
    block, x = made(generator)
    block(x)
    if way == "a hook":
        first(block).register_forward_hook(lambda *given: block.training and None)
    elif way == "a forward":
        first(block).forward = lambda x: block
    elif way == "an attribute":
        second(block).root = (block,)
    kernel = weakref.ref(first(block).weight)
    del block
    gc.collect()
    assert kernel() is None


def test_what_parameters_were_made_of_is_let_go(generator: torch.Generator) -> None:
    block, x = made(generator)
    adapted = {name: p * 1.0 for name, p in block.named_parameters()}
    kernel = weakref.ref(next(iter(adapted.values())))
    torch.func.functional_call(block, adapted, (x,)).sum().backward()
    del adapted
    gc.collect()
    assert kernel() is None


def test_what_training_used_is_let_go_in_eval_mode(generator: torch.Generator) -> None:
    block, x = made(generator)
    block(x)
    kernel = weakref.ref(first(block).weight)
    block.load_state_dict(copy.deepcopy(block.state_dict()), assign=True)
    assert kernel() is not None
    block.eval()
    gc.collect()
    assert kernel() is None


def test_copies_and_pickles_remember_nothing(generator: torch.Generator) -> None:
    block, x = made(generator)
    plain = pickle.dumps(block)
    block(x)
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert sum_of(twin)._plans.known is None
    assert len(pickle.dumps(block)) < len(plain) + 200


def test_sums_that_call_themselves_equal_keep_their_own(generator: torch.Generator) -> None:
    class Equal(Sum):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

        def __hash__(self) -> int:
            return 1

    blocks = [made(generator)[0] for _ in range(2)]
    x = made(generator)[1]
    for block in blocks:
        sum_of(block).__class__ = Equal
        twin = branched(block)
        assert worst(results(block, x), results(twin, x)) <= 1e-9


@pytest.mark.parametrize("compiles", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, None])
def test_statistics_from_far_away(
    compiles: bool, momentum: float | None, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of much smaller or larger batches, and of none that was finite."""
    if not compiles:
        monkeypatch.setattr(compiled, "unavailable", lambda *_: "the test's wish")
        monkeypatch.setattr(roads, "unavailable", lambda *_: "the test's wish")
    block, x = made(generator)
    block, x = block.float(), x.float() * 1e-5
    for norm, start in zip(norms(block), (1.0, 1e30, math.inf), strict=True):
        norm.momentum = momentum
        norm.running_var.fill_(start)
    twin = branched(block)
    block(x), twin(x)
    for ours, theirs in zip(norms(block), norms(twin), strict=True):
        assert torch.allclose(ours.running_var, theirs.running_var, rtol=1e-5, atol=0, equal_nan=True)
