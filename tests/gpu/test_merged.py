"""Merged training on a GPU: the branches' own numbers, and no further from float64 whatever is allowed beside it."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from tests.blocks.beside import (
    LAYOUTS,
    apart_by,
    beside_zero,
    branched,
    drawn,
    errors,
    results,
    sum_of,
    without_and_in_autocast,
    worst,
)
from tests.blocks.test_merged import CASES, MobileOne, RepVGG, channels_of
from tests.gpu.devices import WAYS, on_gpu, tf32
from tests.support import randomize
from unbranch.blocks import MobileOneBlock, RepVGGBlock
from unbranch.fold.precision import full_precision
from unbranch.models import create

pytestmark = pytest.mark.gpu

DENSE = ("dense 3x3", "three dense", "grouped", "pointwise", "pointwise, grouped", "lone, identity")
ULP = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_everything_is_the_branches_own(
    case: str, stride: int, layout: str, generator: torch.Generator
) -> None:
    make, road = CASES[case]
    block = drawn(make, stride, generator).cuda()
    for size in ((33, 20), (9, 7)):
        x = beside_zero(channels_of(case), size, layout, generator).cuda()
        plan = sum_of(block).training_plan(x)
        assert plan.road == road or road in ("depthwise", "channelwise"), str(plan)
        assert plan.road != "depthwise"
        assert apart_by(block, x) <= 1e-9


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", DENSE)
def test_tf32_takes_nothing_from_it(case: str, way: str, generator: torch.Generator) -> None:
    """Allowed for every product and convolution, float32 is as near to float64 as branches are that may not use it."""
    exact = randomize(CASES[case][0](1).double(), generator).float().double().cuda()
    x = (
        (torch.randn(8, channels_of(case), 16, 16, dtype=torch.float64, generator=generator) + 3)
        .float()
        .cuda()
    )
    expected = results(branched(exact), x.double(), 1)
    with full_precision():
        theirs = errors(results(branched(exact).float(), x, 1), expected)
    with tf32(way):
        ours = errors(results(copy.deepcopy(exact).float(), x, 1), expected)
    assert max(ours.values()) <= max(theirs.values()) + 16 * ULP
    for name, error in ours.items():
        assert error <= theirs[name] + 64 * ULP, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [partial(MobileOne, 8, 8, 1), partial(RepVGG, 8, 8, 3)])
def test_autocast_around_backward_takes_nothing_from_it(
    make: partial[nn.Module], dtype: torch.dtype, generator: torch.Generator
) -> None:
    block = randomize(make(num_branches=3), generator).cuda()
    x = torch.randn(4, 8, 9, 7, generator=generator).cuda()
    outside, inside = without_and_in_autocast(block, x, dtype)
    assert worst(inside, outside) <= 4 * ULP


def test_autocast_around_forward_keeps_the_branches(generator: torch.Generator) -> None:
    block = randomize(RepVGG(8, 8), generator).cuda()
    x = torch.randn(4, 8, 9, 7, generator=generator).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert "autocast" in sum_of(block).training_plan(x).apart["dense0"]
        assert worst({"y": block(x)}, {"y": branched(block)(x)}) == 0


@pytest.mark.parametrize(
    "make", [partial(RepVGGBlock, 64, 64), partial(MobileOneBlock, 64, 64, 1, num_branches=4)]
)
def test_auto_keeps_the_branches(make: partial[nn.Module]) -> None:
    block, x = make(training="auto").cuda(), torch.ones(8, 64, 16, 16).cuda()
    plan = sum_of(block).training_plan(x.contiguous(memory_format=torch.channels_last))
    assert (plan.merged, dict(plan.normed)) == ((), {})
    assert all("ask for 'merged'" in why for why in plan.apart.values())


def test_a_whole_network(generator: torch.Generator) -> None:
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=generator)
    model = create("mobileone_s0", num_classes=10, block=partial(MobileOneBlock, training="merged"))
    model = randomize(model.double(), generator, x).cuda().train()
    assert apart_by(model, x.cuda()) <= 1e-8
    assert on_gpu(model)
