"""Merged branches as they are used: on wrong inputs, under autocast, with shared norms, in channels last and in many strips."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tests.blocks.beside import (
    alike,
    apart_by,
    branched,
    checkpointed,
    needs_kernels,
    results,
    sum_of,
    tangent,
    without_and_in_autocast,
    worst,
)
from tests.blocks.test_merged import MobileOne, RepVGG
from tests.support import fold_error, randomize
from unbranch.blocks import MobileOneBlock, RepConvN, Sum
from unbranch.blocks.merged import compiled, roads, run
from unbranch.fold.precision import precision_of

WRONG: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "more channels": (lambda: MobileOne(8, 16, 1, num_branches=2), (4, 16, 7, 7)),
    "fewer channels": (lambda: RepConvN(3, 8, 3, training="merged"), (4, 1, 9, 9)),
    "half the channels": (
        lambda: MobileOneBlock(64, 64, 1, num_branches=4, shortcut=None, training="auto"),
        (16, 32, 64, 64),
    ),
    "depthwise": (lambda: MobileOne(6, 6, 3, groups=6, num_branches=2), (2, 12, 5, 5)),
    "grouped": (lambda: RepVGG(6, 6, 3, groups=2, num_branches=2), (2, 3, 5, 5)),
    "unbatched": (lambda: MobileOne(6, 8, 1, num_branches=2), (6, 5, 5)),
    "unbatched 3x3": (lambda: RepVGG(6, 6, 3, num_branches=2), (6, 5, 5)),
    "no axis": (lambda: MobileOne(6, 6, 1, dims=1, num_branches=2), (2, 6)),
    "one axis more": (lambda: RepVGG(6, 6, 3, num_branches=2), (2, 6, 5, 5, 5)),
    "one axis for two": (lambda: MobileOne(6, 6, 1, dims=1, num_branches=2), (2, 6, 5, 5)),
    "too small": (lambda: unpadded(6), (2, 6, 1, 1)),
}


def unpadded(channels: int) -> Sum:
    """Kernels of 4 taps and no border."""
    made = {name: normed(nn.Conv2d(channels, 8, 4, bias=False), nn.BatchNorm2d(8)) for name in "ab"}
    return merging(Sum(made))


def normed(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def merging(branches: Sum) -> Sum:
    branches.merging = "merged"
    return branches


def conv(channels: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Module:
    return nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, bias=False, **options)


@pytest.mark.parametrize("case", WRONG)
def test_an_input_that_does_not_fit_ends_in_torchs_own_error(case: str) -> None:
    make, shape = WRONG[case]
    block, x = make(), torch.ones(shape)
    with pytest.raises((RuntimeError, ValueError)) as own:
        branched(block)(x)
    with pytest.raises(own.type) as merged:
        block(x)
    assert str(merged.value) == str(own.value)


@pytest.mark.parametrize(
    ("branch", "why"),
    [
        (normed(conv(6, 6), nn.BatchNorm2d(3)), "is not for a norm of 3"),
        (nn.BatchNorm2d(3), "norm is of 3 channels, the input has 6"),
        (normed(nn.ZeroPad2d(-1), nn.Conv2d(6, 6, 1, padding=1, bias=False), nn.BatchNorm2d(6)), "no border"),
        (normed(conv(6, 1), nn.BatchNorm2d(1)), "no other branch is like it"),
        (normed(conv(6, 6), nn.BatchNorm2d(6)).to("meta"), "not torch.float32 on cpu"),
    ],
)
def test_a_branch_that_does_not_fit_is_kept_apart(branch: nn.Module, why: str) -> None:
    branches = {name: normed(conv(6, 6), nn.BatchNorm2d(6)) for name in "bc"}
    plan = merging(Sum({**branches, "a": branch})).training_plan(torch.ones(2, 6, 5, 5))
    assert why in plan.apart["a"]


@pytest.mark.parametrize("border", [-1, 1])
def test_a_border_that_is_cut_off_and_put_on_again(border: int, generator: torch.Generator) -> None:
    pads = [nn.ZeroPad2d(border), nn.ZeroPad2d(border)]
    options: dict[str, Any] = {"padding": 1 - border, "groups": 6, "bias": False}
    made = {
        str(i): normed(pad, nn.Conv2d(6, 6, 3, **options), nn.BatchNorm2d(6)) for i, pad in enumerate(pads)
    }
    block = randomize(merging(Sum(made)).double(), generator)
    x = torch.randn(2, 6, 7, 6, dtype=torch.float64, generator=generator)
    assert bool(sum_of(block).training_plan(x).merged) == (border == 1)
    assert apart_by(block, x) <= 1e-9


@needs_kernels
@pytest.mark.parametrize("short", ["kernel", "gamma", "beta", "eps", "places", "identity"])
def test_the_kernels_refuse_what_would_lead_out_of_memory(short: str) -> None:
    x, y = torch.ones(9, 4), torch.empty(9, 4)
    kernel, gamma, beta = torch.ones(4, 4, 1, 1), torch.ones(4), torch.ones(4)
    given = {"kernel": (kernel[:2], gamma, beta), "gamma": (kernel, gamma[:3], beta)}
    given |= {"beta": (kernel, gamma, beta[:3]), "identity": (None, gamma, beta)}
    parameters = given.get(short, (kernel, gamma, beta))
    if short == "identity":
        y = torch.empty(9, 3)
        parameters = (None, gamma[:3], beta[:3])
    places, eps = [7] if short == "places" else [0], [] if short == "eps" else [0.1]
    with pytest.raises(RuntimeError, match=r"wanted|identity|of a window"):
        compiled.kernels(x.dtype).rows_forward(x, y, 1, parameters, places, [1], 1, 0, eps)


@needs_kernels
def test_the_kernels_refuse_windows_that_are_none() -> None:
    x, y = torch.ones(2, 5, 5, 4), torch.empty(18, 4)
    parameters = (torch.ones(4, 1, 3, 3), None, None)
    fold = (parameters, list(range(9)), [9], 9, 0, [0.1])
    window: dict[str, list[int]] = {
        "kernel": [3, 3],
        "stride": [1, 1],
        "dilation": [1, 1],
        "before": [0, 0],
        "out": [3, 3],
    }
    compiled.kernels(x.dtype).pictures_forward(x, y, *window.values(), *fold)
    for name, wrong in {"kernel": [3], "stride": [0, 1], "before": [0, -1], "out": [0, 3]}.items():
        with pytest.raises(RuntimeError, match=r"window|two axes"):
            compiled.kernels(x.dtype).pictures_forward(x, y, *(window | {name: wrong}).values(), *fold)


@pytest.mark.parametrize(
    "make", [partial(MobileOne, 8, 8, 1), partial(RepVGG, 8, 8, 3), partial(MobileOne, 8, 8, 3, groups=8)]
)
def test_backward_inside_autocast_is_in_the_inputs_own_precision(
    make: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    for place in ("roads", "run"):  # then the products are torch's own
        monkeypatch.setattr(f"unbranch.blocks.merged.{place}.has_kernels", lambda _: False)
    block = randomize(make(num_branches=3), generator)
    x = torch.randn(4, 8, 9, 7, generator=generator)
    outside, inside = without_and_in_autocast(block, x, torch.bfloat16)
    assert worst(inside, outside) == 0


@needs_kernels
def test_compiled_backward_inside_autocast(generator: torch.Generator) -> None:
    block = randomize(MobileOne(40, 40, 1, num_branches=2), generator)
    y = block(torch.randn(4, 40, 9, 7, generator=generator))
    y.square().sum().backward(retain_graph=True)
    plain = [p.grad for p in block.parameters()]
    block.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y.square().sum().backward()
    for one, cast in zip(plain, block.parameters(), strict=True):
        assert torch.equal(one, cast.grad)


def sharing(order: str) -> Sum:
    """Branches a to d, in some order, of which a, the input itself, b and c end in one norm."""
    norm = nn.BatchNorm2d(6)
    made = {
        "a": norm,
        "b": normed(conv(6, 6), norm),
        "c": normed(conv(6, 6), norm, nn.Dropout(0.0)),
        "d": normed(conv(6, 6), nn.BatchNorm2d(6)),
        "e": normed(conv(6, 6), nn.BatchNorm2d(6)),
    }
    return merging(Sum({name: made[name] for name in order}))


@pytest.mark.parametrize("order", ["abde", "bade", "cade", "dace", "bcde"])
def test_a_norm_that_branches_share_remembers_them_in_their_order(
    order: str, generator: torch.Generator
) -> None:
    block = randomize(sharing(order).double(), generator)
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64, generator=generator) + 1
    plan = sum_of(block).training_plan(x)
    assert plan.merged == ("d", "e")
    assert list(plan.apart) == [name for name in order if name not in "de"]
    assert "shared" in plan.apart["a" if "a" in order else "b"]
    assert apart_by(block, x) <= 1e-9


STRIDED: dict[str, Callable[[], nn.Module]] = {
    "1x1": lambda: MobileOne(8, 6, 1, num_branches=2),
    "3x3": lambda: RepVGG(8, 8, 3, num_branches=2),
    "grouped": lambda: RepVGG(8, 8, 3, groups=2, num_branches=2),
    "even": lambda: RepVGG(8, 8, 2, num_branches=2),
    "depthwise": lambda: MobileOne(8, 8, 3, groups=8, num_branches=2),
    "one channel": lambda: RepVGG(1, 8, 3, shortcut=None, num_branches=2),
}


@pytest.mark.parametrize("has", [pytest.param(True, marks=needs_kernels), False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", STRIDED)
def test_gradients_lie_as_their_parameters_do(
    case: str,
    layout: torch.memory_format,
    has: bool,
    monkeypatch: pytest.MonkeyPatch,
    generator: torch.Generator,
) -> None:
    """As DistributedDataParallel wants them; what autograd takes over as it is keeps the strides that it was made with."""
    if not has:
        for place in ("roads", "run"):
            monkeypatch.setattr(f"unbranch.blocks.merged.{place}.has_kernels", lambda _: False)
    block = randomize(STRIDED[case]().double(), generator).to(memory_format=layout)
    channels = block.get_parameter("branches.dense0.conv.weight").shape[1] if case == "one channel" else 8
    x = torch.randn(2, channels, 7, 5, dtype=torch.float64, generator=generator).to(memory_format=layout)
    assert sum_of(block).training_plan(x).merged
    block(x).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name
    assert apart_by(block, x) <= 1e-9


@needs_kernels
def test_kernels_in_channels_last_get_such_gradients_without_a_copy(generator: torch.Generator) -> None:
    block = randomize(RepVGG(8, 8, 3, num_branches=2), generator).to(memory_format=torch.channels_last)
    parameters = dict(block.named_parameters())
    made: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        parameter.register_hook(partial(made.__setitem__, name))
    block(torch.randn(2, 8, 7, 5, generator=generator)).square().sum().backward()
    for name, parameter in parameters.items():
        assert made[name].stride() == parameter.stride(), name


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # torch's own, of its batch norm
def test_forward_mode_derivatives_are_the_branches_own(generator: torch.Generator) -> None:
    block = randomize(RepVGG(6, 6, num_branches=2).double(), generator)
    x, along = torch.randn(2, 2, 6, 5, 4, dtype=torch.float64, generator=generator)
    found = []
    for model in (block, branched(block)):
        with forward_ad.dual_level():
            found.append(forward_ad.unpack_dual(model(forward_ad.make_dual(x, along))).tangent)
    assert fold_error(found[0], found[1]) <= 1e-9


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # torch's own, of its batch norm
@pytest.mark.parametrize("make", [partial(MobileOne, 6, 6, 1, num_branches=2), partial(RepVGG, 6, 6, 3)])
def test_derivatives_of_gradients_forward(make: Callable[..., nn.Module], generator: torch.Generator) -> None:
    block = randomize(make().double(), generator)
    x, along = torch.randn(2, 2, 6, 5, 4, dtype=torch.float64, generator=generator)
    alike(block, partial(tangent, x=x, along=along))


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_see_the_statistics_that_branches_show_them(
    reentrant: bool, activation: str | None, generator: torch.Generator
) -> None:
    block = randomize(MobileOne(6, 6, 1, num_branches=2, activation=activation).double(), generator)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=generator)
    alike(block, partial(checkpointed, x=x, reentrant=reentrant))


@pytest.fixture
def nan_unwritten() -> Iterator[None]:
    """What torch allocates and nobody writes is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@needs_kernels
@pytest.mark.usefixtures("nan_unwritten")
@pytest.mark.parametrize("size", [(48, 70), (47, 71), (9, 300), (5, 4)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 3), (3, 1), (2, 3), (2, 2), (1, 3)])
def test_strips_share_rows_and_leave_zeros_where_no_window_is(
    kernel: int, stride: int, dilation: int, size: tuple[int, int], generator: torch.Generator
) -> None:
    """Windows that overlap, touch and leave rows between them; their strips are several a picture."""
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": 19, "bias": False}
    pad = 0 if size == (47, 71) else kernel // 2
    made = {
        name: normed(nn.Conv2d(19, 19, kernel, padding=pad, **options), nn.BatchNorm2d(19)) for name in "ab"
    }
    block = randomize(merging(Sum(made)).double(), generator)
    x = torch.randn(2, 19, *size, dtype=torch.float64, generator=generator) + 1
    x = x.contiguous(memory_format=torch.channels_last)
    plan = sum_of(block).training_plan(x)
    if min(size) + 2 * pad <= dilation * (kernel - 1):
        assert plan.merged == ()
        return
    assert plan.road == ("channelwise" if kernel == 1 else "depthwise")
    assert apart_by(block, x) <= 1e-9


@needs_kernels
def test_threads_change_no_bit_of_strided_windows(generator: torch.Generator) -> None:
    block = randomize(MobileOne(19, 19, 3, 2, groups=19, num_branches=2).double(), generator)
    x = torch.randn(3, 19, 48, 70, dtype=torch.float64, generator=generator)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(results(copy.deepcopy(block), x))
    finally:
        torch.set_num_threads(before)
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_products_are_in_full_precision_both_ways(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Whatever is allowed beside, on a machine whose processor has bfloat16 or not."""
    noted: list[str] = []

    def noting(step: Callable[..., Any]) -> Callable[..., Any]:
        def noted_step(*given: Any) -> Any:
            noted.append(precision_of(("mkldnn", "matmul")))
            return step(*given)

        return noted_step

    monkeypatch.setattr(roads, "has_kernels", lambda _: False)
    monkeypatch.setattr(run, "has_kernels", lambda _: False)
    for name in ("fold", "unfold"):
        monkeypatch.setattr(roads, name, noting(vars(roads)[name]))
    block = randomize(MobileOne(8, 8, 1, num_branches=3), generator)
    torch._C._set_fp32_precision_setter("mkldnn", "matmul", "bf16")
    try:
        block(torch.randn(4, 8, 9, 7, generator=generator)).sum().backward()
        assert precision_of(("mkldnn", "matmul")) == "bf16"
    finally:
        torch._C._set_fp32_precision_setter("mkldnn", "matmul", "none")
    assert noted == ["ieee", "ieee"]
