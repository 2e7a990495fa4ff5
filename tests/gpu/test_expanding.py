"""Expansion and calibration on a GPU, where the network is."""

import pytest
import torch

import unbranch
from tests.expand.test_expand import ANY, LARGE, Net
from tests.gpu.devices import on_gpu
from tests.support import fold_error, randomize
from unbranch.expand import calibrate, expand, expand_
from unbranch.fold.precision import full_precision

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("recipe", ANY)
def test_it_stays_there_in_both_modes(recipe: str, generator: torch.Generator) -> None:
    x = 2 * torch.randn(16, 3, 33, 31, generator=generator, dtype=torch.float64) + 0.3
    net, x = randomize(Net().double().eval(), generator, x).cuda(), x.cuda()
    wide = expand(net, recipe, x)
    assert on_gpu(wide)
    assert fold_error(wide(x), net(x)) <= 1e-10
    calibrate(wide, [x[:7], x[7:]])
    assert on_gpu(wide)
    assert fold_error(wide(x), net(x)) <= 1e-10
    back = unbranch.reparameterize(wide, x)
    assert on_gpu(back)
    assert fold_error(back(x), net(x)) <= 1e-10
    if recipe != "bottleneck":  # which has no norm, and so trains otherwise
        limit = 0.15 if recipe == "dbb" else 2e-3  # its border follows the running statistics in training too
        assert fold_error(wide.train()(x), net.train()(x)) < limit


@pytest.mark.parametrize("recipe", LARGE)
def test_other_recipes(recipe: str, generator: torch.Generator) -> None:
    kernel, options = LARGE[recipe]
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 4, kernel, padding=kernel // 2, **options), torch.nn.ReLU())
    x = torch.randn(2, 4, 15, 14, generator=generator, dtype=torch.float64)
    net, x = randomize(net.double().eval(), generator, x).cuda(), x.cuda()
    wide = expand(net, recipe, x)
    assert on_gpu(wide)
    assert fold_error(wide(x), net(x)) <= 1e-10


def test_float32_in_place(generator: torch.Generator) -> None:
    x = torch.randn(4, 3, 33, 31, generator=generator)
    net, x = randomize(Net().eval(), generator, x).cuda(), x.cuda()
    with torch.no_grad(), full_precision():
        before = net(x)
        expand_(net, "repvgg", x)
        calibrate(net, [x])
        assert on_gpu(net)
        assert fold_error(net(x), before) <= 1e-5
