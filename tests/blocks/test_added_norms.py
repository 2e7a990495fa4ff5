"""Norms that are computed and added up in one call: outputs, gradients and running statistics are torch's own norms'."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType

import pytest
import torch
from torch import Tensor, nn

from tests.blocks.beside import (
    alike,
    apart_by,
    as_near,
    branched,
    checkpointed,
    drawn,
    needs_kernels,
    results,
    seconds,
    sum_of,
    tangent,
)
from tests.support import fold_error, randomize
from unbranch.blocks import ACBlock, MobileOneBlock, RepVGGBlock, Sum
from unbranch.blocks.merged import compiled, plan

LAST = torch.channels_last
Make = Callable[[int], nn.Module]
CASES: dict[str, tuple[Make, int]] = {
    "one": (lambda s: MobileOneBlock(6, 19, 1, s), 1),
    "two": (lambda s: MobileOneBlock(6, 6, 1), 2),
    "three": (lambda s: RepVGGBlock(6, 6, 3), 3),
    "three, no ReLU": (lambda s: ACBlock(6, 7, 3, s, activation=None), 3),
    "five, SE": (lambda s: RepVGGBlock(6, 7, 3, s, num_branches=4, se=0.5), 5),
    "seven": (lambda s: RepVGGBlock(6, 17, 3, s, num_branches=6), 7),
    "SiLU": (lambda s: RepVGGBlock(6, 7, 3, s, activation="silu"), 2),
    "depthwise": (lambda s: MobileOneBlock(6, 6, 3, s, groups=6, num_branches=2, shortcut="conv"), 4),
    "grouped": (lambda s: RepVGGBlock(6, 8, 3, s, groups=2), 2),
    "without affine": (
        lambda s: RepVGGBlock(6, 7, 3, s, norm=partial(nn.BatchNorm2d, affine=False, momentum=None)),
        2,
    ),
}
BESIDE: dict[str, Make] = {
    "3x3 beside a merged 1x1": lambda s: RepVGGBlock(6, 7, 3, s, activation=None),
    "3x3 beside a merged 1x1 and identity": lambda s: RepVGGBlock(6, 6, 3),
}


@pytest.fixture
def nothing_merges(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plan, "_refusal", lambda *_: "the test wants it apart")
    plan._choose.cache_clear()
    yield
    plan._choose.cache_clear()


@pytest.fixture
def pointwise_merges(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plan, "_refusal", lambda road, *_: None if road == "pointwise" else "the test's wish")
    plan._choose.cache_clear()
    yield
    plan._choose.cache_clear()


def values(generator: torch.Generator, *size: int, channels: int = 6) -> Tensor:
    """In channels-last, of a mean beside zero."""
    x = 2 * torch.randn(3, channels, *size, dtype=torch.float64, generator=generator) + 1
    return x.contiguous(memory_format=LAST if len(size) == 2 else torch.channels_last_3d)


def normed(block: nn.Module, x: Tensor) -> int:
    return len(sum_of(block).training_plan(x).normed)


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_everything_is_the_norms_own(case: str, stride: int, generator: torch.Generator) -> None:
    make, count = CASES[case]
    block = drawn(make, stride, generator)
    for size in ((33, 20), (9, 7), (3, 2), (1, 3)):
        x = values(generator, *size)
        assert normed(block, x) == count
        assert "batch norms in one call" in str(sum_of(block).training_plan(x))
        assert apart_by(block, x) <= 1e-9
        assert copy.deepcopy(block)(x).stride() == branched(block)(x).stride()


@needs_kernels
@pytest.mark.usefixtures("pointwise_merges")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("case", BESIDE)
def test_norms_are_added_to_what_is_merged(case: str, stride: int, generator: torch.Generator) -> None:
    block = drawn(BESIDE[case], stride, generator)
    for size in ((33, 20), (9, 7), (3, 2)):
        x = values(generator, *size)
        chosen = sum_of(block).training_plan(x)
        assert chosen.merged
        assert len(chosen.normed) == 1
        assert apart_by(block, x) <= 1e-9


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
def test_three_axes(generator: torch.Generator) -> None:
    """Where torch's convolution leaves channels-last, as in float64, so do we."""
    for block in (
        RepVGGBlock(6, 6, 3, dims=3),
        RepVGGBlock(6, 1, 3, dims=3),
        MobileOneBlock(6, 6, 1, dims=3),
    ):
        exact = randomize(block.double(), generator)
        x = values(generator, 5, 4, 3)
        assert normed(exact, x) >= 2
        assert apart_by(exact, x) <= 1e-9
        for own, given in ((exact, x), (copy.deepcopy(exact).float(), x.float())):
            assert copy.deepcopy(own)(given).stride() == branched(own)(given).stride()


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
def test_outputs_and_gradients_lie_as_they_did(generator: torch.Generator) -> None:
    x = values(generator, 4, 4)
    inputs = {
        "as it is": x,
        "turned": x.transpose(2, 3),
        "one pixel for all": x[:, :, :1, :1].expand(3, 6, 4, 4),
        "one picture for all": x[:1].expand(3, 6, 4, 4),
        "every other pixel": x[:, :, ::2, ::2],
        "one channel": x[:, :1],
    }
    for name, given in inputs.items():
        channels = given.shape[1]
        for outputs, activation in ((1, None), (6, "relu"), (6, None)):
            block = drawn(
                lambda s, c=channels, o=outputs, a=activation: RepVGGBlock(c, o, 3, s, activation=a),
                1,
                generator,
            )
            found = []
            for model in (copy.deepcopy(block), branched(block)):
                inside = (
                    given.detach().clone(memory_format=torch.preserve_format) if name == "as it is" else given
                )
                inside = inside.detach().requires_grad_()
                y = model(inside)
                y.pow(2).sum().backward()
                assert inside.grad is not None
                found.append((y, inside.grad))
            for ours, theirs in zip(*found, strict=True):
                assert ours.stride() == theirs.stride(), name
                assert fold_error(ours, theirs) <= 1e-9


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
@pytest.mark.parametrize("case", ["two", "three, no ReLU", "SiLU"])
def test_checkpoints_see_the_statistics_that_branches_show_them(
    case: str, generator: torch.Generator
) -> None:
    block = drawn(CASES[case][0], 1, generator)
    x = values(generator, 5, 4)
    for reentrant in (True, False):
        alike(block, partial(checkpointed, x=x, reentrant=reentrant))


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
def test_a_sum_of_somebodys_own_is_given_what_it_takes(generator: torch.Generator) -> None:
    class Own(Sum):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    block = drawn(CASES["two"][0], 1, generator)
    block.get_submodule("branches").__class__ = Own
    assert apart_by(block, values(generator, 5, 4)) <= 1e-9


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
def test_sums_with_other_branches_are_left_as_they_are(generator: torch.Generator) -> None:
    """One that broadcasts, and one that changes its input, whose turn is its own."""

    class Halved(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return input.mul_(0.5)

    for other, size in ((nn.Identity(), (5, 4)), (Halved(), (7, 4))):
        conv = nn.Conv2d(6, 6, (5, 4) if size == (5, 4) else 1, bias=False)
        both = Sum({"a": other, "b": nn.Sequential(conv, nn.BatchNorm2d(6))}).double()
        x = values(generator, *size)
        assert normed(both, x) == 0
        with torch.no_grad():
            assert fold_error(copy.deepcopy(both)(x.clone()), branched(both)(x.clone())) <= 1e-9


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # torch's own, of its batch norm
def test_derivatives_of_gradients_forward(generator: torch.Generator) -> None:
    block = drawn(CASES["two"][0], 1, generator)
    x, along = values(generator, 5, 4), values(generator, 5, 4)
    alike(block, partial(tangent, x=x, along=along))


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
def test_a_beta_may_change_before_the_way_back(generator: torch.Generator) -> None:
    block = drawn(CASES["two"][0], 1, generator)
    y = block(values(generator, 5, 4))
    with torch.no_grad():
        block.get_parameter("branches.dense0.norm.bias").add_(1)
    y.sum().backward()


@needs_kernels
@pytest.mark.parametrize("value", [1e6, float("inf")])
def test_one_pixel_that_sticks_out_costs_no_digits(value: float, generator: torch.Generator) -> None:
    u = 100 + torch.randn(16, 6, 24, 24, generator=generator).contiguous(memory_format=LAST)
    u[:, :, 12, 0] = value
    y, run = torch.empty_like(u), compiled.kernels(torch.float32)
    mean, _, variance = run.norms_forward([u], y, False, False, [None, None], [1e-5])
    exact = u.double().movedim(1, 0).flatten(1)
    assert fold_error(mean[0], exact.mean(1)) <= 1e-6 or value == float("inf")
    if value == float("inf"):
        assert (mean == value).all()
        return
    assert fold_error(variance[0], exact.var(1, correction=0)) <= 1e-5


@needs_kernels
def test_one_infinity_among_few_values_is_their_mean(generator: torch.Generator) -> None:
    """Whichever of them the others are counted from."""
    run = compiled.kernels(torch.float32)
    for at in range(5):
        u = torch.randn(1, 6, 5, 1, generator=generator).contiguous(memory_format=LAST)
        u[:, :, at] = float("inf")
        mean, _, _ = run.norms_forward([u], torch.empty_like(u), False, False, [None, None], [1e-5])
        assert (mean == float("inf")).all()


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("case", ["one", "two", "three", "seven"])
def test_float32_is_as_near_to_float64_as_torchs_norms_are(
    case: str, offset: float, generator: torch.Generator
) -> None:
    exact = randomize(CASES[case][0](1).double(), generator).float().double()
    x = (values(generator, 40, 41) + offset).float().double()
    as_near(exact, x, 32)


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
@pytest.mark.parametrize("case", ["two", "three, no ReLU"])
def test_gradients_of_gradients_and_many_at_once(case: str, generator: torch.Generator) -> None:
    block = drawn(CASES[case][0], 1, generator)
    x = values(generator, 5, 4)
    alike(block, partial(seconds, x=x), 1e-8)
    given = [x.requires_grad_(), *block.parameters()]
    y = block(x)
    many = torch.stack([y.detach().exp(), y.detach().cos()])
    together = torch.autograd.grad(y, given, many, is_grads_batched=True, retain_graph=True)
    for number, g in enumerate(many):
        alone = torch.autograd.grad(y, given, g, retain_graph=True)
        assert all(fold_error(a[number], b) <= 1e-9 for a, b in zip(together, alone, strict=True))


@needs_kernels
@pytest.mark.usefixtures("pointwise_merges")
@pytest.mark.parametrize("case", BESIDE)
def test_gradients_of_gradients_beside_what_is_merged(case: str, generator: torch.Generator) -> None:
    block = drawn(BESIDE[case], 1, generator)
    alike(block, partial(seconds, x=values(generator, 5, 4)), 1e-8)


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
def test_parts_that_are_frozen_and_inputs_that_learn_nothing(generator: torch.Generator) -> None:
    block = drawn(CASES["two"][0], 1, generator)
    block.get_parameter("branches.dense0.conv.weight").requires_grad_(False)
    block.get_parameter("branches.dense0.norm.bias").requires_grad_(False)
    block.get_parameter("branches.shortcut.weight").requires_grad_(False)
    x = values(generator, 5, 4)
    expected = branched(block)
    for model in (block, expected):
        model(x).square().sum().backward()
    for (name, mine), theirs in zip(block.named_parameters(), expected.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        assert mine.grad is None or theirs.grad is None or fold_error(mine.grad, theirs.grad) <= 1e-9, name
    with torch.no_grad():
        assert fold_error(block(x), expected(x)) <= 1e-9
    with torch.inference_mode():
        assert fold_error(block(x), expected(x)) <= 1e-9


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
def test_gradients_and_values_that_lie_otherwise(generator: torch.Generator) -> None:
    """A gradient that is one number for all, an input turned by a quarter, and every other number of a vector as gamma."""
    block = drawn(CASES["two"][0], 1, generator)
    norm = block.get_submodule("branches.dense0.norm")
    norm.weight = nn.Parameter(torch.randn(12, dtype=torch.float64, generator=generator)[::2])
    x = values(generator, 5, 4)
    expected = branched(block)
    found = []
    for model in (block, expected):
        inside = x.clone().requires_grad_()
        model(inside).sum().backward()
        (again,) = torch.autograd.grad(model(inside.transpose(2, 3)).transpose(2, 3).pow(2).sum(), inside)
        found.append((inside.grad, again))
    for ours, theirs in zip(*found, strict=True):
        assert fold_error(ours, theirs) <= 1e-9


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
def test_backward_twice_and_what_is_no_number(generator: torch.Generator) -> None:
    block = drawn(CASES["two"][0], 1, generator)
    x = values(generator, 5, 4).requires_grad_()
    loss = block(x).square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(first, second)
    with torch.no_grad():
        x[0, 2, 1, 1] = float("nan")
    found = [results(copy.deepcopy(block), x.detach(), 1), results(branched(block), x.detach(), 1)]
    for name, value in found[0].items():
        assert torch.equal(value.isnan(), found[1][name].isnan()), name
    assert found[0]["output"].isnan().any()


def hooks_on(name: str, seen: list[Tensor]) -> Callable[[nn.Module], None]:
    def put(block: nn.Module) -> None:
        layer = block.get_submodule(name)
        layer.register_forward_hook(lambda module, given, result: seen.append(result.detach().clone()))

    return put


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
@pytest.mark.parametrize("name", ["branches", "branches.norm", "activation"])
def test_who_looks_at_the_sum_sees_what_it_was(name: str, generator: torch.Generator) -> None:
    block = drawn(CASES["two"][0], 1, generator)
    x = values(generator, 5, 4)
    seen: list[list[Tensor]] = []
    for model in (block, branched(block)):
        seen.append([])
        hooks_on(name, seen[-1])(model)
        model(x)
    assert len(seen[0]) == len(seen[1]) == 1
    assert fold_error(seen[0][0], seen[1][0]) <= 1e-9
    assert (seen[0][0] < 0).any() == (name != "activation")


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
def test_an_activation_of_somebodys_own_is_called(generator: torch.Generator) -> None:
    class Leaky(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return nn.functional.leaky_relu(input, 0.1)

    for own in (Leaky(), nn.ReLU()):
        block = drawn(lambda s, own=own: MobileOneBlock(6, 6, 1, activation=own), 1, generator)
        if type(own) is nn.ReLU:
            own.forward = MethodType(Leaky.forward, own)
        x = values(generator, 5, 4)
        assert (block(x) < 0).any()
        assert apart_by(block, x) <= 1e-9


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
def test_one_value_for_a_channel_is_refused_as_a_norm_refuses_it() -> None:
    block = MobileOneBlock(6, 8, 1, 2)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(torch.ones(1, 6, 2, 2).contiguous(memory_format=LAST))


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
def test_a_gamma_of_another_size_is_refused_as_a_norm_refuses_it(generator: torch.Generator) -> None:
    block = drawn(CASES["two"][0], 1, generator)
    block.get_submodule("branches.dense0.norm").weight = nn.Parameter(torch.ones(5, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="weight should contain 6 elements not 5"):
        block(values(generator, 5, 4))


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
def test_attention_stands_between_sum_and_activation(generator: torch.Generator) -> None:
    block = drawn(CASES["five, SE"][0], 1, generator)
    x = values(generator, 5, 4)
    parts = [branched(block).get_submodule(name) for name in ("branches", "attention", "activation")]
    assert fold_error(block(x), nn.Sequential(*parts)(x)) <= 1e-9


@needs_kernels
def test_means_far_from_zero_lose_no_digits(generator: torch.Generator) -> None:
    """Even where the mean is no float32 number."""
    u = 3000 + torch.randn(4, 6, 40, 50, generator=generator).contiguous(memory_format=LAST)
    g = u - 2999 + torch.randn(u.shape, generator=generator).contiguous(memory_format=LAST)
    gamma, beta = torch.rand(2, 6, generator=generator)
    run, y = compiled.kernels(torch.float32), torch.empty_like(u)
    mean, inverse, _ = run.norms_forward([u], y, False, False, [gamma, beta], [1e-3])
    du, dgamma, dbeta = run.norms_backward([u], g, None, mean, inverse, [gamma], [1, 1, 1])
    exact = [t.double().requires_grad_() for t in (u, gamma, beta)]
    expected = nn.functional.batch_norm(exact[0], None, None, *exact[1:], training=True, eps=1e-3)
    assert fold_error(y.double(), expected) <= 1e-6
    for found, wanted in zip(
        (du, dgamma, dbeta), torch.autograd.grad(expected, exact, g.double()), strict=True
    ):
        assert fold_error(found.double(), wanted) <= 1e-6


def test_without_kernels_or_in_the_default_layout_torchs_own_norms_run(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    block = RepVGGBlock(6, 7, 3).double()
    x = values(generator, 5, 4)
    assert normed(block, x.contiguous()) == 0
    monkeypatch.setenv(compiled.OFF, "0")
    assert normed(block, x) == 0


@needs_kernels
@pytest.mark.usefixtures("nothing_merges")
def test_threads_change_no_bit(generator: torch.Generator) -> None:
    given = [values(generator, 61, 70, channels=19).float() for _ in range(4)]
    gammas = [torch.rand(19, generator=generator) for _ in range(4)]
    parameters = [gammas[0], None, gammas[1], gammas[2], None, None, gammas[3], gammas[3]]
    run = compiled.kernels(torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = torch.empty_like(given[0])
            made = run.norms_forward(given, y, False, True, parameters, [0.1] * 4)
            back = run.norms_backward(given, given[1], y, *made[:2], parameters[::2], [1] * 12)
            found.append([y, *made, *back])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@needs_kernels
@pytest.mark.parametrize("wrong", ["gamma", "size", "layout", "eps", "none", "y", "type", "mean"])
def test_the_kernels_refuse_what_would_lead_out_of_memory(wrong: str) -> None:
    u = torch.ones(2, 6, 5, 4).contiguous(memory_format=LAST)
    y, other, gamma, eps = torch.empty_like(u), u.clone(), torch.ones(6), [0.1, 0.1]
    other = {"size": u[:1], "layout": u.contiguous(), "type": u.double()}.get(wrong, other)
    taken = [] if wrong == "none" else [u, other]
    parameters = [gamma, gamma, gamma[:5] if wrong == "gamma" else gamma, None]
    eps, y = eps[:1] if wrong == "eps" else eps, y[:1] if wrong == "y" else y
    call = compiled.kernels(u.dtype).norms_forward
    if wrong != "mean":
        with pytest.raises(RuntimeError, match="wanted"):
            call(taken, y, False, False, parameters, eps)
    mean, inverse, _ = call([u, u], torch.empty_like(u), False, False, [gamma] * 4, [0.1, 0.1])
    if wrong == "mean":
        taken, mean = [u, u], mean[:1]
    with pytest.raises(RuntimeError, match="wanted"):
        compiled.kernels(u.dtype).norms_backward(
            taken if wrong != "eps" else [u], y, None, mean, inverse, parameters[::2], [1] * 6
        )
