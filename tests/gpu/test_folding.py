"""Folding where the network is, a GPU: the same function there, in every dtype, proved whatever precision the process allows."""

import copy

import pytest
import torch
from torch import nn

import unbranch
from tests.blocks.test_fold import folded_error
from tests.blocks.test_gallery import DENSE, OTHERS, SIZES
from tests.gpu.devices import NETWORKS, WAYS, network, on_gpu, tf32
from tests.support import fold_error, randomize
from unbranch.blocks import MobileOneBlock, RepVGGBlock
from unbranch.fold.precision import full_precision

pytestmark = pytest.mark.gpu
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_stays_there_and_is_the_same(name: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    model, x = network(name, generator, dtype)
    folded, report = unbranch.reparameterize(model, x, return_report=True)
    assert report.changed
    assert on_gpu(folded)
    certificate = unbranch.verify(model, folded, x, report=report)
    assert certificate, str(certificate)
    assert certificate.error <= LIMITS[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_in_channels_last(name: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    model, x = network(name, generator, dtype)
    model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    folded, report = unbranch.reparameterize(model, x, return_report=True)
    assert report.changed
    assert on_gpu(folded)
    convolutions = [m for m in folded.modules() if isinstance(m, nn.Conv2d)]
    assert {m.weight.dtype for m in convolutions} == {dtype}
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)
    certificate = unbranch.verify(model, folded, x)
    assert certificate, str(certificate)


def test_inputs_are_guessed_there(generator: torch.Generator) -> None:
    model, _ = network("repvgg", generator, torch.float32)
    assert on_gpu(unbranch.reparameterize(model))


@pytest.mark.parametrize("way", WAYS)
def test_tf32_neither_fails_a_fold_nor_hides_a_wrong_one(way: str, generator: torch.Generator) -> None:
    """A kernel that is wrong by less than TF32's rounding is still wrong."""
    x = torch.randn(2, 3, 33, 40, generator=generator)
    blocks = (RepVGGBlock(3, 32, stride=2), *(RepVGGBlock(32, 32) for _ in range(3)))
    model, x = randomize(nn.Sequential(*blocks), generator, x).eval().cuda(), x.cuda()
    folded = unbranch.reparameterize(model, x)
    wrong = copy.deepcopy(folded)
    kernel = next(m for m in wrong.modules() if isinstance(m, nn.Conv2d)).weight
    kernel.mul_(1 + 5e-5 * torch.randn(kernel.shape, generator=generator).to(kernel))
    with tf32(way), torch.no_grad():
        rounding = fold_error(model(x), copy.deepcopy(model).double()(x.double()))
        with full_precision():
            assert 1e-5 < fold_error(wrong(x), model(x)) < rounding
        certificate = unbranch.verify(model, folded, x)
        assert certificate, str(certificate)
        assert {check.tolerance for check in certificate.checks} == {1e-5}
        assert not unbranch.verify(model, wrong, x)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_stays_there(name: str, generator: torch.Generator) -> None:
    model, x = network(name, generator, torch.float32)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
    folded, report = unbranch.reparameterize(program, return_report=True)
    assert report.changed
    assert {t.device.type for t in (*folded.state_dict.values(), *folded.constants.values())} == {"cuda"}
    certificate = unbranch.verify(program, folded, report=report)
    assert certificate, str(certificate)
    assert folded.module()(x).device == x.device


@pytest.mark.parametrize("name", [*DENSE, *OTHERS])
def test_blocks_deploy_there(name: str, generator: torch.Generator) -> None:
    block = DENSE[name](3, 1) if name in DENSE else OTHERS[name]()
    x = torch.randn(
        2, block.in_channels, *SIZES[len(block.example_size)], generator=generator, dtype=torch.float64
    )
    randomize(block.double().eval(), generator, x)
    assert folded_error(block.cuda(), x.cuda()) <= 1e-10
    assert on_gpu(block)


@pytest.mark.parametrize("shortcut", ["conv", "average", "select", "linear"])
def test_shortcuts_deploy_there(shortcut: str, generator: torch.Generator) -> None:
    for make in (RepVGGBlock, MobileOneBlock):
        block = make(4, 6, 3, 2, shortcut=shortcut)
        x = torch.randn(2, 4, 13, 10, generator=generator, dtype=torch.float64)
        randomize(block.double().eval(), generator, x)
        assert folded_error(block.cuda(), x.cuda()) <= 1e-10
        assert on_gpu(block)


def test_containers_are_taken_out_there(generator: torch.Generator) -> None:
    """Which compares the outcome bit by bit."""
    model, x = network("repvgg", generator, torch.float32)
    folded = unbranch.reparameterize(model, x, unwrap=True)
    assert on_gpu(folded)
    assert unbranch.verify(model, folded, x)
