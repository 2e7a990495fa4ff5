"""The shortcut kinds against torch's own resampling and pooling."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unbranch.blocks import ConvSpec, RepVGGBlock, shortcut_branch
from unbranch.blocks.shortcuts import CHANNEL_MAPS

CHANNELS = [(4, 4), (4, 8), (8, 4), (6, 4), (4, 6), (7, 3), (3, 7), (5, 1), (1, 5), (12, 8)]


def average(x: Tensor, c_out: int) -> Tensor:
    """Each channel repeated up to a common multiple, then plain means: a step function, integrated."""
    common = math.lcm(x.shape[1], c_out)
    return x.repeat_interleave(common // x.shape[1], 1).unflatten(1, (c_out, -1)).mean(2)


def interpolated(x: Tensor, c_out: int, mode: str) -> Tensor:
    n, _, *size = x.shape
    lines = x.flatten(2).transpose(1, 2)
    return F.interpolate(lines, c_out, mode=mode).transpose(1, 2).reshape(n, c_out, *size)


ORACLES = {
    "average": average,
    "select": lambda x, c_out: interpolated(x, c_out, "nearest-exact"),
    "linear": lambda x, c_out: interpolated(x, c_out, "linear"),
}


def branch(kind: str, spec: ConvSpec) -> nn.Module:
    """The branch without its norm, in float64, its constants exact."""
    with_norm = shortcut_branch(kind, spec)
    assert isinstance(with_norm, nn.Sequential)
    return with_norm[:-1].eval()


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", CHANNEL_MAPS)
@pytest.mark.parametrize(("c_in", "c_out"), CHANNELS)
@pytest.mark.parametrize("groups", [1, 3])
def test_channels_are_mapped_within_each_group(kind: str, c_in: int, c_out: int, groups: int) -> None:
    x = torch.randn(2, c_in * groups, 5, 4)
    spec = ConvSpec.of(c_in * groups, c_out * groups, 3, groups=groups)
    expected = torch.cat([ORACLES[kind](part, c_out) for part in x.chunk(groups, 1)], 1)
    assert torch.allclose(branch(kind, spec)(x), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", CHANNEL_MAPS)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (4, 2), (5, 3), (7, 4), (2, 2), ((3, 5), (1, 3))])
def test_a_stride_averages_the_taps_from_the_centre_on(kind: str, mode: str, kernel, stride) -> None:
    spec = ConvSpec.of(4, 6, kernel, stride, padding_mode=mode)
    x = torch.randn(2, 4, 13, 10)
    after = [s - 1 for s in spec.stride]
    border = F.pad(x, (0, after[1], 0, after[0]), mode="constant" if mode == "zeros" else mode)
    pooled = F.avg_pool2d(border, spec.stride)
    result = branch(kind, spec)(x)
    assert result.shape[2:] == tuple(-(-size // s) for size, s in zip((13, 10), spec.stride, strict=True))
    assert torch.allclose(result, ORACLES[kind](pooled, 6), rtol=0, atol=1e-13)


def test_a_dilated_stride_averages_dilated_taps() -> None:
    spec = ConvSpec.of(1, 1, 3, 2, dilation=3, dims=1)
    x = torch.randn(1, 1, 11)
    padded = F.pad(x, (0, 3))
    expected = (padded[..., 0:11:2] + padded[..., 3:14:2]) / 2
    assert torch.allclose(branch("average", spec)(x), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (3, 3), (4, 4), ((5, 3), (3, 3))])
@pytest.mark.parametrize("kind", CHANNEL_MAPS)
def test_a_kernel_too_small_for_its_stride_is_refused(kind: str, kernel, stride) -> None:
    with pytest.raises(ValueError, match="use a larger kernel, or 'conv', or None"):
        RepVGGBlock(4, 8, kernel, stride, shortcut=kind)


def test_identity_that_changes_channels_or_size_names_the_others() -> None:
    with pytest.raises(ValueError, match="shortcut='identity' needs") as caught:
        RepVGGBlock(16, 32, stride=2, shortcut="identity")
    text = str(caught.value)
    assert "16 -> 32 channels and stride (2, 2)" in text
    for other in ("conv", "average", "select", "linear", "None"):
        assert other in text


def test_an_unknown_shortcut_is_refused() -> None:
    with pytest.raises(
        ValueError, match="shortcut='avg' is none of auto, identity, conv, average, select, linear"
    ):
        RepVGGBlock(4, 4, shortcut="avg")


@pytest.mark.parametrize(
    ("c_in", "c_out", "stride", "shortcut", "has"),
    [
        (4, 4, 1, "auto", True),
        (4, 8, 1, "auto", False),
        (4, 4, 2, "auto", False),
        (4, 4, 1, None, False),
        (4, 8, 2, "conv", True),
        (4, 8, 2, "average", True),
    ],
)
def test_which_blocks_have_a_shortcut(
    c_in: int, c_out: int, stride: int, shortcut: str | None, has: bool
) -> None:
    block = RepVGGBlock(c_in, c_out, stride=stride, shortcut=shortcut)
    assert ("shortcut" in dict(block.branches.named_children())) is has


def test_the_fixed_maps_are_neither_trained_nor_saved() -> None:
    block = RepVGGBlock(4, 8, stride=2, shortcut="linear")
    names = [name for name in block.state_dict() if "shortcut" in name]
    assert names == [
        f"branches.shortcut.norm.{n}"
        for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]
