"""Geometry of a block: what pads, what lines up, what is refused."""

import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unbranch.blocks import ConvSpec, RepVGGBlock

SIZES = {1: (17,), 2: (17, 12), 3: (9, 8, 7)}


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_centre_tap_sits_on_the_pixel_that_a_pointwise_kernel_sees(
    kernel: int, stride: int, dilation: int, dims: int
) -> None:
    spec = ConvSpec.of(1, 1, kernel, stride, dilation=dilation, dims=dims)
    layers = nn.Sequential(spec.conv()).double()
    with torch.no_grad():
        (weight,) = layers.parameters()
        weight.zero_()
        weight[(0, 0, *((kernel - 1) // 2,) * dims)] = 1
    x = torch.randn(1, 1, *SIZES[dims], dtype=torch.float64)
    every = (slice(None), slice(None), *(slice(None, None, stride),) * dims)
    assert torch.equal(layers(x), x[every])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding", [0, 1, 4, "valid", "same", (2, 0), ((0, 3), (5, 1)), ((4, 0), (0, 0))])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, (5, 2)])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_every_branch_reads_where_the_centre_tap_does(kernel, stride: int, dilation: int, padding) -> None:
    if padding == "same" and stride > 1:
        with pytest.raises(
            ValueError, match=r"padding='same' needs stride 1, as torch's layers do, got \(3, 3\)"
        ):
            ConvSpec.of(1, 1, kernel, stride, padding=padding)
        return
    spec = ConvSpec.of(1, 1, kernel, stride, dilation=dilation, padding=padding)
    dense, pointwise = (nn.Sequential(spec.conv(size)).double() for size in (None, 1))
    with torch.no_grad():
        for layers in (dense, pointwise):
            (weight,) = layers.parameters()
            weight.zero_()
            weight[(0, 0, *((k - 1) // 2 for k in weight.shape[2:]))] = 1
    x = torch.randn(1, 1, 17, 12, dtype=torch.float64)
    expected = dense(x)
    assert torch.equal(pointwise(x), expected)
    if stride == 1:
        assert torch.equal(spec.carried()(x), expected)
    if isinstance(padding, int | str):
        own = nn.Conv2d(1, 1, spec.kernel, stride, padding, dilation).double()
        own.load_state_dict({"weight": next(dense.parameters()), "bias": torch.zeros(1)})
        assert torch.equal(own(x), expected)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("kernel", [(3, 5), (4, 3), (2, 5), (6, 6)])
def test_the_border_is_the_mode_s_own(mode: str, kernel: tuple[int, int]) -> None:
    spec = ConvSpec.of(2, 3, kernel, padding_mode=mode)
    layers = nn.Sequential(spec.conv()).double()
    (weight,) = layers.parameters()
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    (top, bottom), (left, right) = (((k - 1) // 2, k // 2) for k in kernel)
    border = F.pad(x, (left, right, top, bottom), mode="constant" if mode == "zeros" else mode)
    assert torch.allclose(layers(x), F.conv2d(border, weight), rtol=0, atol=1e-13)


def test_a_symmetric_border_needs_no_pad_module() -> None:
    assert list(ConvSpec.of(2, 2, (3, 5)).conv()) == ["conv"]
    assert list(ConvSpec.of(2, 2, (3, 4)).conv()) == ["pad", "conv"]


def test_the_norm_is_the_one_asked_for() -> None:
    spec = ConvSpec.of(2, 4, 3, norm=partial(nn.BatchNorm2d, eps=1e-3))
    norm = spec.conv_norm().get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    assert (norm.eps, norm.num_features) == (1e-3, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((0, 4, 3), {}, "in_channels must be at least 1, got 0"),
        ((4, 6, 3), {"groups": 4}, "out_channels=6 cannot be divided into groups=4"),
        ((4, 4, 3), {"groups": 0}, "groups=0"),
        ((4, 4, 0), {}, "kernel_size=0"),
        ((4, 4, (3, 3, 3)), {}, "kernel_size=(3, 3, 3) must be one positive number or 2 of them"),
        ((4, 4, 3, -1), {}, "stride=-1"),
        ((4, 4, 3), {"dilation": (1, 0)}, "dilation=(1, 0)"),
        ((4, 4, 3), {"padding_mode": "constant"}, "padding_mode='constant' is none of zeros, reflect"),
        (
            (4, 4, 3),
            {"padding": -1},
            "padding=-1 must be 'same', 'valid', one number from 0 on, or 2 of them",
        ),
        ((4, 4, 3), {"padding": ((1, 1), (0, -1))}, "padding=((1, 1), (0, -1)) must be"),
        ((4, 4, 3), {"padding": (1,)}, "padding=(1,) must be"),
        ((4, 4, 3), {"padding": "full"}, "padding='full' must be"),
        ((4, 4, 3), {"dims": 4}, "dims must be 1, 2 or 3, got 4"),
    ],
)
def test_what_makes_no_convolution_is_refused_with_its_values(arguments, options, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        ConvSpec.of(*arguments, **options)


def test_an_option_that_no_block_takes_is_refused() -> None:
    with pytest.raises(TypeError, match="no such option: pad; there are dilation, groups, padding, "):
        RepVGGBlock(3, 4, pad=1)
