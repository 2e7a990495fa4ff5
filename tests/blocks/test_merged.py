"""Branches that train as one convolution: outputs, gradients and running statistics are the branches' own."""

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn

from tests.blocks.beside import (
    LAYOUTS,
    alike,
    apart_by,
    as_near,
    beside_zero,
    branched,
    drawn,
    needs_kernels,
    seconds,
    sum_of,
)
from tests.support import fold_error, norms, randomize
from unbranch.blocks import ACBlock, MobileOneBlock, QARepVGGBlock, RepMixer, RepVGGBlock, RepVGGDW
from unbranch.blocks.merged import check_training, compiled

RepVGG = partial(RepVGGBlock, training="merged")
MobileOne = partial(MobileOneBlock, training="merged")
CASES: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "dense 3x3": (lambda s: RepVGG(6, 6, 3, s), "patches"),
    "three dense": (lambda s: RepVGG(6, 6, 3, s, num_branches=3), "patches"),
    "grouped": (lambda s: RepVGG(6, 12, 3, s, groups=2, shortcut="conv"), "patches"),
    "even, dilated": (lambda s: RepVGG(4, 4, 4, s, dilation=2), "patches"),
    "pointwise": (lambda s: MobileOne(6, 8, 1, s, num_branches=3), "pointwise"),
    "pointwise, grouped": (lambda s: MobileOne(6, 6, 1, s, num_branches=2, groups=3), "pointwise"),
    "depthwise": (lambda s: MobileOne(6, 6, 3, s, groups=6, num_branches=4), "depthwise"),
    "depthwise, SE": (lambda s: MobileOne(19, 19, 3, s, groups=19, num_branches=2, se=0.5), "depthwise"),
    "depthwise, even": (lambda s: MobileOne(6, 6, 2, s, groups=6, num_branches=2), "depthwise"),
    "depthwise, dilated": (lambda s: MobileOne(5, 5, 3, s, groups=5, dilation=2), "depthwise"),
    "averaged": (lambda s: MobileOne(6, 6, 3, s, groups=6, shortcut="average"), "depthwise"),
    "crossed": (lambda s: ACBlock(6, 6, 3, s, groups=6, training="merged"), "depthwise"),
    "wide depthwise": (lambda s: MobileOne(6, 6, 5, s, groups=6, shortcut="conv"), "channelwise"),
    "reflected": (lambda s: RepVGG(6, 8, 3, s, shortcut="conv", padding_mode="reflect"), "pointwise"),
    "lone": (lambda s: RepVGG(6, 8, 3, s, shortcut=None, padding_mode="reflect"), "pointwise"),
    "lone, identity": (lambda s: RepVGG(6, 6, 3, s, padding_mode="reflect"), "pointwise"),
    "without affine": (
        lambda s: RepVGG(6, 8, 1, s, num_branches=2, norm=partial(nn.BatchNorm2d, affine=False)),
        "pointwise",
    ),
    "cumulative": (
        lambda s: RepVGG(6, 8, 1, s, num_branches=2, norm=partial(nn.BatchNorm2d, momentum=None)),
        "pointwise",
    ),
    "no statistics": (
        lambda s: RepVGG(6, 8, 1, s, num_branches=2, norm=partial(nn.BatchNorm2d, track_running_stats=False)),
        "pointwise",
    ),
}


def channels_of(case: str) -> int:
    return {"depthwise, dilated": 5, "depthwise, SE": 19, "even, dilated": 4}.get(case, 6)


@needs_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_everything_is_the_branches_own(
    case: str, stride: int, layout: str, generator: torch.Generator
) -> None:
    make, road = CASES[case]
    block = drawn(make, stride, generator)
    channels = channels_of(case)
    for size in ((33, 20), (9, 7), (3, 2)):  # the shift is the mean itself until windows are many
        x = beside_zero(channels, size, layout, generator)
        plan = sum_of(block).training_plan(x)
        if not (case == "wide depthwise" and stride == 2):
            assert plan.road == road, str(plan)
        assert apart_by(block, x) <= 1e-9
        assert copy.deepcopy(block)(x).stride() == branched(block)(x).stride()


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(compiled.OFF, "0")
    compiled.unavailable.cache_clear()
    yield
    monkeypatch.delenv(compiled.OFF)
    compiled.unavailable.cache_clear()


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_nothing_compiled_is_the_same(case: str, stride: int, generator: torch.Generator) -> None:
    make, _ = CASES[case]
    block = drawn(make, stride, generator)
    channels = {"even, dilated": 4, "depthwise, dilated": 5, "depthwise, SE": 19}.get(case, 6)
    x = 2 * torch.randn(3, channels, 9, 7, dtype=torch.float64, generator=generator) + 1
    assert sum_of(block).training_plan(x).road != "depthwise"
    assert apart_by(block, x) <= 1e-9


@needs_kernels
@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("groups", [1, 6])
def test_one_and_three_axes(dims: int, groups: int, generator: torch.Generator) -> None:
    block = randomize(RepVGG(6, 6, 3, dims=dims, groups=groups, num_branches=2).double(), generator)
    x = torch.randn(2, 6, *(7, 5, 4)[:dims], dtype=torch.float64, generator=generator)
    assert sum_of(block).training_plan(x).merged
    assert apart_by(block, x) <= 1e-9


@needs_kernels
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("case", ["dense 3x3", "pointwise", "lone, identity", "depthwise", "wide depthwise"])
def test_float32_is_as_near_to_float64_as_the_branches_are(
    case: str, offset: float, generator: torch.Generator
) -> None:
    """The worst of all tensors is no further off, but for 16 units in the last place: sums of 2,048 products in another order."""
    exact = randomize(CASES[case][0](1).double(), generator).float().double()
    x = (torch.randn(8, 6, 16, 16, dtype=torch.float64, generator=generator) + offset).float().double()
    as_near(exact, x, 16)


@needs_kernels
def test_parts_that_are_frozen_and_inputs_that_learn_nothing(generator: torch.Generator) -> None:
    block = randomize(MobileOne(6, 6, 3, groups=6, num_branches=2).double(), generator)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=generator)
    block.get_parameter("branches.dense0.conv.weight").requires_grad_(False)
    block.get_parameter("branches.shortcut.bias").requires_grad_(False)
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


def test_backward_twice_through_one_graph(generator: torch.Generator) -> None:
    block = randomize(MobileOne(6, 8, 1, num_branches=2).double(), generator)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    loss = block(x).square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(first, second)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_gradients_are_the_branches_own(
    case: str, stride: int, generator: torch.Generator
) -> None:
    block = drawn(CASES[case][0], stride, generator)
    x = torch.randn(3, channels_of(case), 7, 6, dtype=torch.float64, generator=generator)
    alike(block, partial(seconds, x=x), 1e-8)


def test_gradients_of_gradients_of_a_block_that_runs_twice(generator: torch.Generator) -> None:
    """The second input is made of the first call's parameters, which are the second call's own."""
    block = drawn(CASES["pointwise, grouped"][0], 1, generator)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=generator)
    alike(block, lambda model: seconds(nn.Sequential(model, model), x), 1e-8)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's unfold, taken many at a time
@pytest.mark.parametrize("case", ["dense 3x3", "pointwise, grouped", "depthwise", "wide depthwise"])
def test_many_gradients_at_once_are_those_one_by_one(case: str, generator: torch.Generator) -> None:
    block = drawn(CASES[case][0], 1, generator)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    given = [x, *block.parameters()]
    y = block(x)
    many = torch.randn(3, *y.shape, dtype=torch.float64, generator=generator)
    one_by_one = [torch.autograd.grad(y, given, g, retain_graph=True) for g in many]
    at_once = torch.autograd.grad(y, given, many, is_grads_batched=True, retain_graph=True)
    mapped = torch.func.vmap(lambda g: torch.autograd.grad(y, given, g, retain_graph=True))(many)
    for each, *together in zip(zip(*one_by_one, strict=True), at_once, mapped, strict=True):
        for found in together:
            assert fold_error(found, torch.stack(each)) <= 1e-9


def hooked(block: nn.Module) -> None:
    block.get_submodule("branches.dense0.conv").register_forward_hook(lambda *_: None)


def frozen(block: nn.Module) -> None:
    block.get_submodule("branches.dense0.norm").eval()


def biased(block: nn.Module) -> None:
    block.get_submodule("branches.dense0.conv").register_parameter("bias", nn.Parameter(torch.ones(8)))


def dropped(block: nn.Module) -> None:
    block.get_submodule("branches.dense0").append(nn.Dropout(0.0))


def weight_normed(block: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(block.get_submodule("branches.dense0.conv"))


def replaced(block: nn.Module) -> None:
    norm = block.get_submodule("branches.dense0.norm")
    norm.forward = MethodType(lambda self, x: nn.BatchNorm2d.forward(self, x).sin(), norm)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (hooked, "has hooks"),
        (replaced, "a forward of its own"),
        (frozen, "frozen"),
        (biased, "has a bias"),
        (dropped, "ends in Dropout"),
        (weight_normed, "ParametrizedConv2d"),
    ],
)
def test_a_branch_that_cannot_be_merged_stays_by_itself(
    change: Callable[[nn.Module], None], why: str, generator: torch.Generator
) -> None:
    block = RepVGG(6, 8, 1, num_branches=3).double()
    change(block.double())
    block.double()
    randomize(block, generator)
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64, generator=generator)
    plan = sum_of(block).training_plan(x)
    assert plan.merged == ("dense1", "dense2")
    assert why in plan.apart["dense0"]
    assert f"dense0: by itself: {plan.apart['dense0']}" in str(plan)
    assert apart_by(block, x) <= 1e-9


@pytest.mark.parametrize("case", ["dense 3x3", "pointwise", "depthwise", "wide depthwise"])
def test_statistics_that_are_not_tracked_stay(case: str, generator: torch.Generator) -> None:
    block = drawn(CASES[case][0], 1, generator)
    for norm in norms(block):
        norm.track_running_stats = False
    x = torch.randn(3, 6, 7, 6, dtype=torch.float64, generator=generator)
    assert sum_of(block).training_plan(x).merged
    before = {name: buffer.clone() for name, buffer in block.named_buffers()}
    assert apart_by(block, x) <= 1e-9
    block(x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in block.named_buffers())


def test_what_torch_s_norm_would_not_train_is_left_to_it(generator: torch.Generator) -> None:
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=generator)
    for change in ("eps", "half", "float"):
        block = RepVGG(6, 6, num_branches=3).double()
        norm = block.get_submodule("branches.dense0.norm")
        assert isinstance(norm, nn.BatchNorm2d)
        if change == "eps":
            norm.eps = 0.0
        elif change == "half":
            norm.running_mean = None
        else:
            norm.running_var = torch.ones(6)
        assert sum_of(block).training_plan(x).merged
        assert "dense0" in sum_of(block).training_plan(x).apart
        alike(block, lambda model: [outcome(model, x)])


def outcome(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output, or nothing where torch refuses, which depends on its release."""
    try:
        return model(x)
    except (ValueError, RuntimeError):
        return torch.empty(0)


def test_a_covariance_of_too_few_windows_is_not_taken() -> None:
    plan = sum_of(MobileOne(100, 100, 1, num_branches=3)).training_plan(torch.ones(2, 100, 1, 1))
    assert plan.road is None
    assert "too little" in plan.apart["dense0"]


@pytest.mark.parametrize("channels", [130, 131])
def test_symmetric_products_are_halved(channels: int, generator: torch.Generator) -> None:
    block = randomize(MobileOne(channels, channels, 1, num_branches=2).double(), generator)
    x = torch.randn(3, channels, 9, 8, dtype=torch.float64, generator=generator) + 1
    assert apart_by(block, x) <= 1e-9


def test_gradients_share_no_memory(generator: torch.Generator) -> None:
    """Clipping multiplies each gradient in place."""
    block = randomize(MobileOne(6, 6, 1, num_branches=3), generator)
    block(torch.randn(3, 6, 5, 4, generator=generator)).square().sum().backward()
    grads = [p.grad for p in block.parameters() if p.grad is not None]
    spans = sorted((g.data_ptr(), g.data_ptr() + g.numel() * g.element_size()) for g in grads)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@needs_kernels
@pytest.mark.parametrize("size", [(3, 3), (4, 9), (40, 70), (3, 300)])
def test_maps_of_every_extent(size: tuple[int, int], generator: torch.Generator) -> None:
    """Smaller than, as wide as and wider than a strip and a partial sum."""
    block = randomize(MobileOne(18, 18, groups=18, num_branches=2).double(), generator)
    x = torch.randn(5, 18, *size, dtype=torch.float64, generator=generator) + 1
    assert sum_of(block).training_plan(x).road == "depthwise"
    assert apart_by(block, x.contiguous(memory_format=torch.channels_last)) <= 1e-9


def test_synchronised_norms_keep_their_branches() -> None:
    block = nn.SyncBatchNorm.convert_sync_batchnorm(RepVGG(6, 6))
    plan = sum_of(block).training_plan(torch.ones(2, 6, 5, 5))
    assert plan.merged == ()
    assert all("SyncBatchNorm" in why for why in plan.apart.values())


@pytest.mark.parametrize("block", [QARepVGGBlock(6, 6, training="merged"), RepVGGDW(6, training="merged")])
def test_a_norm_behind_the_sum_merges_nothing_and_says_so(
    block: nn.Module, generator: torch.Generator
) -> None:
    plan = sum_of(block).training_plan(torch.randn(2, 6, 5, 5, generator=generator))
    assert plan.merged == ()
    assert plan.apart["dense"] == "no other branch is like it"
    assert "not in a batch norm" in plan.apart["pointwise"]
    assert "not in a batch norm" in plan.apart["shortcut"]


def test_what_keeps_every_branch(generator: torch.Generator) -> None:
    block, x = RepVGG(6, 6), torch.randn(2, 6, 5, 5, generator=generator)
    branches = sum_of(block)
    whole: dict[str, Any] = {}
    whole["eval mode"] = copy.deepcopy(branches).eval().training_plan(x)
    whole["bfloat16"] = branches.training_plan(x.bfloat16())
    whole["no variance"] = branches.training_plan(x[:1, :, :1, :1])
    with torch.autocast("cpu"):
        whole["autocast"] = branches.training_plan(x)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    whole["every module"] = branches.training_plan(x)
    handle.remove()
    branches.merging = "branches"
    whole["training='branches'"] = branches.training_plan(x)
    for why, plan in whole.items():
        assert plan.merged == (), why
        assert why in plan.apart["dense0"]


def test_one_value_for_a_channel_is_refused_as_a_norm_refuses_it() -> None:
    for block in (RepVGG(6, 6), MobileOne(6, 6, groups=6), MobileOne(6, 6, 1)):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            block(torch.ones(1, 6, 1, 1))


def test_auto_merges_where_it_saves_work() -> None:
    branches = sum_of(MobileOneBlock(64, 64, 1, num_branches=4, training="auto"))
    assert branches.training_plan(torch.ones(8, 64, 16, 16)).road == "pointwise"
    small = branches.training_plan(torch.ones(1, 64, 2, 2))
    assert small.merged == ()
    assert "multiply-adds" in small.apart["dense0"]
    dense = sum_of(RepVGGBlock(64, 64, training="auto")).training_plan(torch.ones(8, 64, 16, 16))
    assert dense.merged == ("pointwise", "shortcut")
    assert "more to keep" in dense.apart["dense0"]


@pytest.mark.usefixtures("uncompiled")
def test_without_a_compiler_depthwise_branches_train_one_by_one() -> None:
    plan = sum_of(MobileOne(6, 6, groups=6)).training_plan(torch.ones(2, 6, 5, 5))
    assert plan.road == "channelwise"
    assert compiled.OFF in plan.apart["dense0"]


def test_a_compiler_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv(compiled.FOLDER, str(tmp_path))
    compiled.unavailable.cache_clear()
    try:
        why = compiled.unavailable()
    finally:
        monkeypatch.undo()
        compiled.unavailable.cache_clear()
    assert why is not None
    assert "failed" in why
    assert "failed" in caplog.records[-1].message
    assert list(tmp_path.iterdir()) == []


def test_the_precision_that_others_chose_is_theirs_again(generator: torch.Generator) -> None:
    block = randomize(MobileOne(6, 8, 1, num_branches=2), generator)
    torch.set_float32_matmul_precision("medium")
    try:
        block(torch.randn(2, 6, 5, 4, generator=generator)).sum().backward()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_keys_copies_pickles_and_folds(generator: torch.Generator) -> None:
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=generator)
    block = randomize(MobileOne(6, 6, 1, num_branches=2).double(), generator)
    assert list(block.state_dict()) == list(MobileOneBlock(6, 6, 1, num_branches=2).state_dict())
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert sum_of(twin).merging == "merged"
        assert fold_error(twin(x), branched(block)(x)) <= 1e-9
    with pytest.raises(ValueError, match="in training mode"):
        block.switch_to_deploy()
    before = block.eval()(x)
    assert fold_error(torch.export.export(block, (x,)).module()(x), before) == 0
    block.switch_to_deploy()
    assert fold_error(block(x), before) <= 1e-10


def test_sums_inside_other_branches_take_the_option() -> None:
    mixer = RepMixer(6, num_branches=2, training="merged")
    assert sum_of(mixer).merging == "merged"
    assert len(list(norms(mixer))) == 5


def test_an_unknown_way_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="none of auto, merged, branches"):
        check_training("fast")
