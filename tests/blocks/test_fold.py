"""Every block, folded against branched, over the grid of its options."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from tests.support import fold_error, randomize
from unbranch.blocks import Block, MobileOneBlock, RepVGGBlock

MODES = ["zeros", "reflect", "replicate", "circular"]
SHORTCUTS = ["auto", "identity", None, "conv", "average", "select", "linear"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SIZE = {1: (19,), 2: (13, 10), 3: (7, 9, 8)}


def is_plain(module: nn.Module) -> bool:
    """One convolution, or a pad and a convolution."""
    if isinstance(module, nn.Sequential):
        pad, conv = module
        return not list(pad.parameters()) and isinstance(conv, CONVOLUTIONS)
    return isinstance(module, CONVOLUTIONS)


def folded_error(block: Block, x: torch.Tensor) -> float:
    """The error of ``switch_to_deploy`` on random weights and statistics, borders included."""
    before = block(x)
    block.switch_to_deploy()
    assert is_plain(block.branches)
    assert not any(p.requires_grad for p in block.branches.parameters())
    return fold_error(block(x), before)


def allowed(shortcut: str | None, kernel: int, stride: int, c_in: int, c_out: int) -> bool:
    if shortcut == "identity":
        return stride == 1 and c_in == c_out
    if shortcut in ("average", "select", "linear"):
        return kernel - (kernel - 1) // 2 >= stride
    return True


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "dilation"), [(1, 1), (2, 1), (2, 3), (3, 1), (3, 2), (4, 1), (4, 2), (5, 1)]
)
def test_repvgg(kernel: int, stride: int, dilation: int, mode: str, generator: torch.Generator) -> None:
    folded = 0
    for shortcut, (c_in, c_out, groups) in product(SHORTCUTS[1:], ((4, 4, 2), (4, 6, 1), (6, 4, 2))):
        if not allowed(shortcut, kernel, stride, c_in, c_out):
            continue
        block = RepVGGBlock(
            c_in,
            c_out,
            kernel,
            stride,
            shortcut=shortcut,
            groups=groups,
            dilation=dilation,
            padding_mode=mode,
            activation=None,
        ).double()
        x = torch.randn(2, c_in, *SIZE[2], dtype=torch.float64, generator=generator)
        randomize(block, generator, x)
        assert folded_error(block.eval(), x) <= 1e-10, f"{shortcut=} {groups=} {c_in=} {c_out=}"
        folded += 1
    assert folded >= 6


@pytest.mark.parametrize("num_branches", [1, 3])
@pytest.mark.parametrize("kernel", [1, 3, 4, (3, 5), (1, 4)])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize(("groups", "c_out"), [(1, 6), (1, 9), (3, 9), (6, 6)])
def test_mobileone(num_branches: int, kernel: Any, stride: Any, groups: int, c_out: int, generator) -> None:
    block = MobileOneBlock(
        6, c_out, kernel, stride, num_branches=num_branches, groups=groups, se=0.5
    ).double()
    x = torch.randn(2, 6, *SIZE[2], dtype=torch.float64, generator=generator)
    randomize(block, generator, x)
    assert folded_error(block.eval(), x) <= 1e-10


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 4])
def test_one_two_and_three_axes(shortcut: str | None, dims: int, kernel: int, generator) -> None:
    stride = 1 if shortcut in ("auto", "identity") else 2
    block = RepVGGBlock(4, 4, kernel, stride, shortcut=shortcut, dims=dims, groups=2, se=0.5).double()
    x = torch.randn(2, 4, *SIZE[dims], dtype=torch.float64, generator=generator)
    randomize(block, generator, x)
    assert folded_error(block.eval(), x) <= 1e-10


@pytest.mark.parametrize("activation", [None, "silu", "gelu", nn.Hardswish, nn.PReLU(8)])
@pytest.mark.parametrize("se", [None, 1 / 16, 1.0])
def test_what_follows_the_sum_stays(activation: Any, se: float | None, generator) -> None:
    block = RepVGGBlock(8, 8, activation=activation, se=se).double()
    x = torch.randn(2, 8, *SIZE[2], dtype=torch.float64, generator=generator)
    randomize(block, generator, x)
    after = (block.attention, block.activation)
    assert folded_error(block.eval(), x) <= 1e-10
    assert (block.attention, block.activation) == after


@pytest.mark.parametrize(
    "norm",
    [
        lambda c: nn.BatchNorm2d(c, eps=1e-3),
        lambda c: nn.BatchNorm2d(c, eps=0.5, affine=False),
        nn.SyncBatchNorm,
        lambda c: nn.Identity(),
    ],
    ids=["eps", "no affine", "sync", "none"],
)
def test_other_norms(norm: Any, generator) -> None:
    block = RepVGGBlock(4, 8, stride=2, shortcut="linear", norm=norm).double()
    x = torch.randn(2, 4, *SIZE[2], dtype=torch.float64, generator=generator)
    randomize(block, generator, x)
    assert folded_error(block.eval(), x) <= 1e-10


def test_a_norm_without_statistics_is_refused_and_nothing_changes() -> None:
    block = RepVGGBlock(4, 4, norm=lambda c: nn.BatchNorm2d(c, track_running_stats=False)).eval()
    branches = block.branches
    with pytest.raises(ValueError, match="RepVGGBlock"):
        block.switch_to_deploy()
    assert block.branches is branches


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shortcut", ["identity", "average"])
def test_working_dtypes(dtype: torch.dtype, shortcut: str, generator) -> None:
    """Half types: no further from the float64 branches than the float64 fold cast down is."""
    exact = RepVGGBlock(16, 16, shortcut=shortcut, num_branches=2, activation=None).double()
    x = torch.randn(2, 16, *SIZE[2], dtype=torch.float64, generator=generator).to(dtype)
    randomize(exact, generator, x.double())
    exact.eval()
    block = RepVGGBlock(16, 16, shortcut=shortcut, num_branches=2, activation=None).to(dtype).eval()
    block.load_state_dict(exact.state_dict())
    branched = RepVGGBlock(16, 16, shortcut=shortcut, num_branches=2, activation=None).double().eval()
    branched.load_state_dict(block.state_dict())
    expected = branched(x.double())
    block.switch_to_deploy()
    branched.switch_to_deploy()
    cast = branched.to(dtype)
    assert {p.dtype for p in block.parameters()} == {dtype}
    error = fold_error(block(x), expected)
    assert error <= 1.01 * fold_error(cast(x), expected) + 1e-12
    assert error <= (1e-5 if dtype == torch.float32 else 5e-2)


def test_channels_last_stays(generator) -> None:
    block = RepVGGBlock(8, 8).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 9, 7, generator=generator).to(memory_format=torch.channels_last)
    randomize(block, generator, x)
    assert folded_error(block.eval(), x) <= 1e-5
    assert isinstance(block.branches, nn.Conv2d)
    assert block.branches.weight.is_contiguous(memory_format=torch.channels_last)
    assert block(x).is_contiguous(memory_format=torch.channels_last)


def test_a_batch_of_none(generator) -> None:
    block = RepVGGBlock(4, 8, stride=2, shortcut="average", se=0.25).eval()
    randomize(block, generator)
    x = torch.zeros(0, 4, 9, 7)
    assert block(x).shape == (0, 8, 5, 4)
    block.switch_to_deploy()
    assert block(x).shape == (0, 8, 5, 4)


def test_weight_norm_inside_a_branch(generator) -> None:
    block = RepVGGBlock(4, 4).double()
    conv = block.get_submodule("branches.dense0.conv")
    nn.utils.parametrizations.weight_norm(conv)
    x = torch.randn(2, 4, *SIZE[2], dtype=torch.float64, generator=generator)
    randomize(block, generator, x)
    assert folded_error(block.eval(), x) <= 1e-10
