"""Blocks with any padding: what they fold into, and merged training, which leaves to the branches what it does not do."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support import fold_error, randomize
from unbranch import blocks
from unbranch.blocks import Block, MobileOneBlock, Sum

BLOCKS: dict[str, Callable[..., Block]] = {
    "RepVGGBlock": lambda **k: blocks.RepVGGBlock(6, 6, 3, **k),
    "average": lambda **k: blocks.RepVGGBlock(6, 4, 4, 2, shortcut="average", **k),
    "DiverseBranchBlock": lambda **k: blocks.DiverseBranchBlock(6, 4, 4, 4, **k),
    "ACBlock": lambda **k: blocks.ACBlock(6, 4, (2, 3), **k),
    "QARepVGGBlock": lambda **k: blocks.QARepVGGBlock(6, 6, 2, **k),
    "OREPABlock": lambda **k: blocks.OREPABlock(6, 4, 4, 3, **k),
    "LinearBottleneck": lambda **k: blocks.LinearBottleneck(6, 6, 3, **k),
    "EdgeOrientedBlock": lambda **k: blocks.EdgeOrientedBlock(6, 4, groups=2, dilation=2, **k),
    "RepVGGDW": lambda **k: blocks.RepVGGDW(6, 4, **k),
    "RepGhostBlock": lambda **k: blocks.RepGhostBlock(6, 2, **k),
    "RepMixer": lambda **k: blocks.RepMixer(6, 3, **k),
    "RepLKBlock": lambda **k: blocks.RepLKBlock(6, 8, small=4, **k),
    "DilatedReparamBlock": lambda **k: blocks.DilatedReparamBlock(
        6, 8, kernels=(3, 4), dilations=(3, 2), dilation=2, **k
    ),
}


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 6, 23, 21, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("padding", [0, ((0, 2), (3, 1))])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_with_any_padding_is_its_one_convolution(
    name: str, padding: Any, x: Tensor, generator: torch.Generator
) -> None:
    block = BLOCKS[name](padding=padding, activation=None).double().eval()
    randomize(block, generator, x)
    expected = block(x)
    block.switch_to_deploy()
    layers = block.branches if isinstance(block.branches, nn.Sequential) else [block.branches]
    assert [p.ndim for p in block.parameters()] == [4, 1]
    assert isinstance([*layers][-1], nn.Conv2d)
    assert fold_error(block(x), expected) <= 1e-10


def test_its_output_is_as_large_as_the_plain_convolution_s(x: Tensor) -> None:
    for padding in (0, 2, "valid", (0, 3)):
        block = MobileOneBlock(6, 4, (2, 5), 3, dilation=(3, 1), padding=padding).double()
        assert block(x).shape == nn.Conv2d(6, 4, (2, 5), 3, padding, (3, 1)).double()(x).shape


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "merges"),
    [
        (3, 1, 0, ("dense0", "dense1")),
        (4, 4, 0, ("dense0", "dense1")),
        (3, 1, 3, ("dense0", "dense1", "pointwise")),
        (2, 2, ((0, 1), (1, 0)), ("dense0", "dense1")),
        (1, 1, 1, ("dense0", "dense1")),
        (1, 2, (1, 0), ("dense0", "dense1")),
    ],
)
def test_merged_training_does_what_the_branches_do(
    kernel: int, stride: int, padding: Any, merges: tuple[str, ...], x: Tensor, generator: torch.Generator
) -> None:
    """A branch that is not merged, as one that crops may be, has a reason and is computed by itself."""
    block = MobileOneBlock(6, 6, kernel, stride, num_branches=2, padding=padding, activation=None).double()
    randomize(block, generator, x)
    merged = copy.deepcopy(block.train())
    assert isinstance(merged.branches, Sum)
    merged.branches.merging = "merged"
    plan = merged.branches.training_plan(x)
    assert {*merges} <= {*plan.merged}
    assert {*plan.apart} == {*merged.branches.names} - {*plan.merged}
    assert all(plan.apart.values())
    given = [x.clone().requires_grad_() for _ in range(2)]
    results = [one(v) for one, v in zip((merged, block), given, strict=True)]
    assert fold_error(*results) <= 1e-10
    for one, y, v in zip((merged, block), results, given, strict=True):
        torch.autograd.backward(y.square().mean(), inputs=[v, *one.parameters()])
    pairs = [tuple(given), *zip(merged.parameters(), block.parameters(), strict=True)]
    for ours, theirs in pairs:
        assert ours.grad is not None
        assert theirs.grad is not None
        assert fold_error(ours.grad, theirs.grad) <= 1e-9
    for ours, theirs in zip(merged.buffers(), block.buffers(), strict=True):
        assert fold_error(ours, theirs) <= 1e-10
