"""An expanded network's tensors give a plain one the same branches; blocks say what form they are in."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.expand.test_expand import ANY
from tests.support import fold_error, randomize
from unbranch.blocks import RepVGGBlock
from unbranch.expand import Expanded, expand, expand_, expand_like_
from unbranch.models.yolo import Conv


def plain() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
    return nn.Sequential(*layers, nn.ReLU(), Conv(8, 8, 3)).double().eval()


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 3, 17, 13, generator=generator, dtype=torch.float64)


@pytest.fixture
def net(generator: torch.Generator, x: Tensor) -> nn.Module:
    return randomize(plain(), generator, x)


@pytest.mark.parametrize("recipe", ANY)
def test_the_recipe_is_read_off_the_tensors(net: nn.Module, x: Tensor, recipe: str) -> None:
    wide = expand(net, recipe, x, where="[35]*")
    other = plain().train()
    assert expand_like_(other, wide.state_dict(), x) == {"3": recipe, "5.branches.dense.0": recipe}
    assert all(module.training for module in other.modules())
    other.load_state_dict(wide.state_dict())
    assert fold_error(other.eval()(x), net(x)) <= 1e-10


def test_each_layer_has_its_own_recipe(net: nn.Module, x: Tensor) -> None:
    expand_(net, "dbb", x, where="0")
    expand_(net, "mobileone", x, where="5")
    assert expand_like_(plain(), net.state_dict(), x) == {"0": "dbb", "5.branches.dense.0": "mobileone"}


def test_branches_of_no_recipe(net: nn.Module, x: Tensor) -> None:
    state = expand(net, "repvgg", x, where="[03]").state_dict()
    state["3.branches.fourth.weight"] = torch.zeros(3)
    other = plain()
    before = list(other.modules())
    with pytest.raises(
        ValueError, match=r"3: its branches \(dense0, fourth, pointwise, shortcut\) are those of none"
    ):
        expand_like_(other, state, x)
    assert list(other.modules()) == before


def test_a_sum_of_one_expands_and_folds_as_a_whole(net: nn.Module, x: Tensor) -> None:
    expected, deployed = net(x), copy.deepcopy(net)
    block, folded = net.get_submodule("5"), deployed.get_submodule("5")
    assert isinstance(block, Conv)
    assert isinstance(folded, Conv)
    folded.switch_to_deploy()
    expand_(net, "repvgg", x, where="5")
    with pytest.raises(ValueError, match=r"branch of 5\.branches\.dense\.0 already"):
        expand_(net, "repvgg", x, where="5")
    block.switch_to_deploy()
    assert net.state_dict().keys() == deployed.state_dict().keys()
    assert fold_error(net(x), expected) <= 1e-10
    expand_(net, "repvgg", x, where="5")
    assert isinstance(block.branches, Expanded)
    assert fold_error(net(x), expected) <= 1e-10
    block.switch_to_deploy()
    assert net.state_dict().keys() == deployed.state_dict().keys(), (
        "the convolution takes the layer's own place"
    )


def test_a_block_says_that_it_cannot_go_back() -> None:
    branched, folded = (nn.Sequential(RepVGGBlock(4, 4), RepVGGBlock(4, 4)).eval() for _ in range(2))
    for block in folded:
        assert isinstance(block, RepVGGBlock)
        block.switch_to_deploy()
    with pytest.raises(RuntimeError, match="in deploy form and cannot go back to the branches") as caught:
        folded.load_state_dict(branched.state_dict())
    assert str(caught.value).count("cannot go back") == 1
    with pytest.raises(RuntimeError, match="the branches cannot be recovered from it"):
        branched.load_state_dict(folded.state_dict())
    branched.load_state_dict(copy.deepcopy(branched).state_dict())
    folded.load_state_dict(folded.state_dict(), strict=False)
