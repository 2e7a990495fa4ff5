"""The other blocks of the field, folded against branched, over their options."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.blocks.test_fold import folded_error
from tests.support import randomize
from unbranch import blocks

Make = Callable[[int, int], blocks.Block]

DENSE: dict[str, Make] = {
    "acnet": lambda k, s: blocks.ACBlock(4, 6, k, s, groups=2),
    "dbb": lambda k, s: blocks.DiverseBranchBlock(4, 6, k, s),
    "dbb grouped": lambda k, s: blocks.DiverseBranchBlock(4, 6, k, s, groups=2),
    "dbb dilated": lambda k, s: blocks.DiverseBranchBlock(4, 6, k, s, dilation=2),
    "qarepvgg": lambda k, s: blocks.QARepVGGBlock(4, 4, k, s, groups=2),
    "orepa": lambda k, s: blocks.OREPABlock(4, 6, k, s, groups=2),
    "repconv": lambda k, s: blocks.RepConv(4, 4, k, s),
    "repconvn": lambda k, s: blocks.RepConvN(4, 4, k, s, groups=2),
    "repvggdw": lambda k, s: blocks.RepVGGDW(4, k, s),
    "bottleneck": lambda k, s: blocks.LinearBottleneck(4, 4, k, s),
    "bottleneck grouped": lambda k, s: blocks.LinearBottleneck(4, 6, k, s, groups=2),
}
OTHERS: dict[str, Callable[[], blocks.Block]] = {
    "edge": lambda: blocks.EdgeOrientedBlock(4, 6),
    "edge strided": lambda: blocks.EdgeOrientedBlock(4, 4, 2),
    "repghost": lambda: blocks.RepGhostBlock(4, 5),
    "repmixer": lambda: blocks.RepMixer(4, 3, num_branches=2, scale=0.7),
    "replk": lambda: blocks.RepLKBlock(4, 13, small=5),
    "unireplk": lambda: blocks.DilatedReparamBlock(4, 13),
    "acnet 1-d": lambda: blocks.ACBlock(4, 6, 5, dims=1),
    "acnet 3-d": lambda: blocks.ACBlock(4, 6, 3, 2, dims=3),
    "dbb 1-d": lambda: blocks.DiverseBranchBlock(4, 6, 4, dims=1),
    "dbb 3-d": lambda: blocks.DiverseBranchBlock(4, 6, 3, dims=3),
    "repconv 3-d": lambda: blocks.RepConv(4, 4, 3, dims=3),
    "orepa 1-d": lambda: blocks.OREPABlock(4, 6, 5, 2, dims=1),
}
KINDS: dict[str, Callable[..., blocks.Block]] = {
    "dbb": blocks.DiverseBranchBlock,
    "orepa": blocks.OREPABlock,
    "bottleneck": blocks.LinearBottleneck,
    "edge": blocks.EdgeOrientedBlock,
    "repconv_orepa": blocks.RepConvOREPA,
}
BORDERED: dict[str, list[dict[str, Any]]] = {
    "edge": [{}, {"stride": 2}],
    **{
        name: [
            {"kernel_size": 3},
            {"kernel_size": 4, "stride": 2, "groups": 2},
            {"kernel_size": 3, "dims": 1, "dilation": 2},
        ]
        for name in ("dbb", "orepa", "bottleneck", "repconv_orepa")
    },
    "dbb 3-d": [{"kernel_size": 3, "dims": 3}],
    "orepa 3-d": [{"kernel_size": 3, "dims": 3}],
}
SIZES = {1: (19,), 2: (13, 10), 3: (7, 9, 8)}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 4, 5])
@pytest.mark.parametrize("name", DENSE)
def test_dense(name: str, kernel: int, stride: int, generator: torch.Generator) -> None:
    check(DENSE[name](kernel, stride), generator)


@pytest.mark.parametrize("name", OTHERS)
def test_others(name: str, generator: torch.Generator) -> None:
    check(OTHERS[name](), generator)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("name", BORDERED)
def test_borders_that_repeat_pixels(name: str, mode: str, generator: torch.Generator) -> None:
    """What stands behind a bias or a norm is padded by pixels that have gone through them too."""
    for options in BORDERED[name]:
        check(KINDS[name.split(maxsplit=1)[0]](4, 6, padding_mode=mode, **options), generator)


def check(block: blocks.Block, generator: torch.Generator) -> None:
    block = block.double().eval()
    size = SIZES[len(block.example_size)]
    x = torch.randn(2, block.in_channels, *size, generator=generator, dtype=torch.float64)
    randomize(block, generator, x)
    assert folded_error(block, x) <= 1e-10


@pytest.mark.parametrize("name", [*DENSE, *OTHERS])
def test_it_trains(name: str, generator: torch.Generator) -> None:
    block = DENSE[name](3, 1) if name in DENSE else OTHERS[name]()
    x = torch.randn(4, block.in_channels, *SIZES[len(block.example_size)], generator=generator)
    block.train()(x).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in block.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: blocks.EdgeOrientedBlock(4, 4, dims=1), "are 3x3, the kernel is 3: use another block"),
        (lambda: blocks.RepLKBlock(4, 5, small=7), "larger than the kernel"),
        (lambda: blocks.DilatedReparamBlock(4, 7), "reaches beyond"),
    ],
)
def test_what_makes_no_convolution_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
