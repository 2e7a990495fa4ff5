"""Expansion: the same function in eval mode, calibrated in training mode, and back again by folding."""

import copy
import io
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import unbranch
from tests.support import fold_error, randomize
from unbranch.blocks import Sum
from unbranch.blocks.depthwise import Mixer
from unbranch.blocks.spec import NORMS
from unbranch.expand import RECIPES, Expanded, calibrate, expand, expand_, expand_like_, parameter_groups
from unbranch.models.yolov5 import yolov5

ANY = (
    "repvgg", "repconvn", "mobileone", "acnet", "dbb", "qarepvgg", "repvit", "orepa", "repconv_orepa", "bottleneck",
)  # fmt: skip
LARGE = {
    "edge": (3, {}),
    "replk": (7, {"groups": 4}),
    "unireplk": (13, {"groups": 4}),
    "repghost": (3, {"groups": 4}),
    "repmixer": (5, {"groups": 4}),
}

FEW_NORMS = {"orepa": 1, "bottleneck": 0}


class Net(nn.Module):
    """Convolutions with and without norms, strided, grouped, dilated, shared."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8, eps=1e-3, momentum=0.03)
        self.grouped = nn.Conv2d(8, 8, 3, 1, 1, groups=4)
        self.dilated = nn.Conv2d(8, 12, 3, 1, 2, dilation=2)
        self.valid = nn.Conv2d(12, 6, 3)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.grouped(x)) + x
        x = torch.relu(self.dilated(x))
        return self.head(torch.relu(self.valid(x)))


def convolution(model: nn.Module, path: str) -> nn.Conv2d:
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Conv2d)
    return layer


def expanded(model: nn.Module, path: str) -> Expanded:
    layer = model.get_submodule(path)
    assert isinstance(layer, Expanded)
    return layer


@pytest.fixture
def net(generator: torch.Generator) -> nn.Module:
    x = torch.randn(2, 3, 17, 19, generator=generator, dtype=torch.float64)
    return randomize(Net().double().eval(), generator, x)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 3, 21, 18, generator=generator, dtype=torch.float64)


def test_each_recipe_is_tried() -> None:
    assert {*ANY, *LARGE} == set(RECIPES)


@pytest.mark.parametrize("recipe", LARGE)
def test_recipes_for_some_convolutions(generator: torch.Generator, recipe: str) -> None:
    size, options = LARGE[recipe]
    conv = nn.Conv2d(4, 4, size, padding=size // 2, bias=False, **options)
    net = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1, 2, 2)).double().eval()
    x = torch.randn(2, 4, 17, 15, generator=generator, dtype=torch.float64)
    randomize(net, generator, x)
    wide = expand(net, recipe, x)
    both = ["0", "3"] if recipe == "edge" else ["0"]
    assert [name for name, m in wide.named_modules() if isinstance(m, Expanded)] == both
    assert (calibrate(wide, [x]) == 0) == (recipe == "edge")
    assert fold_error(wide(x), net(x)) <= 1e-10
    assert fold_error(unbranch.reparameterize(wide, x)(x), net(x)) <= 1e-10
    assert expand_like_(copy.deepcopy(net), wide.state_dict(), x) == dict.fromkeys(both, recipe)


@pytest.mark.parametrize("recipe", ANY)
def test_expansion_keeps_the_function_and_folds_back(net: nn.Module, x: Tensor, recipe: str) -> None:
    wide = expand(net, recipe, x)
    kinds = {name for name, m in wide.named_modules() if isinstance(m, Expanded)}
    assert kinds == {"stem", "grouped", "dilated", "valid"}
    assert fold_error(wide(x), net(x)) <= 1e-10
    back = unbranch.reparameterize(wide, x)
    assert fold_error(back(x), net(x)) <= 1e-10
    assert not [m for m in back.modules() if isinstance(m, Expanded)]
    plain = unbranch.reparameterize(net, x)
    for name in kinds:
        ours, theirs = convolution(back, name), convolution(plain, name)
        assert fold_error(ours.weight, theirs.weight) <= 1e-10
        assert ours.kernel_size == theirs.kernel_size


@pytest.mark.parametrize(
    ("dims", "bias"),
    [
        (1, True),
        *(
            pytest.param(d, b, marks=pytest.mark.slow)
            for d, b in ((1, False), (2, True), (2, False), (3, True))
        ),
    ],
)
@pytest.mark.parametrize("recipe", [*ANY, "repghost", "repmixer"])
def test_any_convolution(generator: torch.Generator, recipe: str, dims: int, bias: bool) -> None:
    """Strided, grouped, dilated, with a norm and without."""
    make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    layers = (
        make(4, 6, 5, 2, 2, groups=2, bias=bias),
        norm(6),
        nn.ReLU(),
        make(6, 6, 3, 1, 2, dilation=2, groups=6 if recipe in LARGE else 3, bias=bias),
    )
    net = nn.Sequential(*layers).double().eval()
    x = torch.randn(2, 4, *(9, 8, 7)[:dims], generator=generator, dtype=torch.float64)
    randomize(net, generator, x)
    if recipe == "acnet" and dims == 1:
        with pytest.raises(ValueError, match="0: the recipe makes one branch of it"):
            expand(net, recipe, x)
        return
    wide = expand(net, recipe, x)
    both = ["0", "3"] if recipe in ANY else ["3"]
    assert [name for name, m in wide.named_modules() if isinstance(m, Expanded)] == both
    assert fold_error(wide(x), net(x)) <= 1e-10
    assert fold_error(unbranch.reparameterize(wide, x)(x), net(x)) <= 1e-10


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("recipe", [*ANY, "edge", "repghost", "repmixer"])
def test_borders_that_repeat_pixels(generator: torch.Generator, recipe: str, mode: str) -> None:
    """Calibrated too, exactly: no border holds a constant."""
    groups = 6 if recipe in ("repghost", "repmixer") else 1
    conv = nn.Conv2d(6, 6, 3, 1, 1, groups=groups, padding_mode=mode)
    net = nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU()).double()
    x = torch.randn(4, 6, 9, 8, generator=generator, dtype=torch.float64)
    randomize(net, generator, x).eval()
    wide = expand(net, recipe, x)
    calibrate(wide, [x])
    assert fold_error(wide(x), net(x)) <= 1e-10
    assert fold_error(unbranch.reparameterize(wide, x)(x), net(x)) <= 1e-10
    if recipe not in ("edge", "bottleneck", "repmixer"):
        assert fold_error(wide.train()(x), net.train()(x)) < 2e-3


@pytest.mark.parametrize(
    ("recipe", "where"),
    [
        ("repvgg", "stem"),
        ("dbb", None),
        ("qarepvgg", None),
        *(pytest.param(recipe, "dilated", marks=pytest.mark.slow) for recipe in ANY),
    ],
)
def test_calibration_keeps_the_function_in_both_modes(
    net: nn.Module, generator: torch.Generator, recipe: str, where: str | None
) -> None:
    """In training mode a convolution with its norm is what it was in training mode, one without a norm what it was."""
    batch = 2 * torch.randn(16, 3, 33, 31, generator=generator, dtype=torch.float64) + 0.3
    wide = expand(net, recipe, batch, where=where)
    kept = {name: value.clone() for name, value in wide.state_dict().items() if name.startswith("norm")}
    norms = [
        m for m in wide.modules() if isinstance(m, Expanded) for m in m.modules() if isinstance(m, NORMS)
    ]
    assert calibrate(wide.train(), [batch[:7], batch[7:]]) == len(norms) >= FEW_NORMS.get(recipe, 2)
    assert all(module.training for module in wide.modules())
    wide.eval()
    assert all(torch.equal(value, wide.state_dict()[name]) for name, value in kept.items())
    assert fold_error(wide(batch), net(batch)) <= 1e-10
    limit = 0.15 if recipe == "dbb" else 2e-3  # its border follows the running statistics in training too
    assert fold_error(wide.train()(batch), net.train()(batch)) < limit


def test_calibration_with_nothing(net: nn.Module, x: Tensor) -> None:
    wide = expand(net, "repvgg", x, where="stem")
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(wide, [])
    assert all(torch.equal(value, wide.state_dict()[name]) for name, value in before.items())
    with pytest.raises(ValueError, match="expand_"):
        calibrate(net, [x])


def test_it_shows_the_convolution_that_it_amounts_to(net: nn.Module, x: Tensor) -> None:
    plain = unbranch.reparameterize(net, x)
    wide = expand(net, "repvgg", x, where="stem")
    layer, folded = expanded(wide, "stem").train(), convolution(plain, "stem")
    assert layer.bias is not None
    assert folded.bias is not None
    assert fold_error(layer.weight, folded.weight) <= 1e-10
    assert fold_error(layer.bias, folded.bias) <= 1e-10
    assert all(module.training for module in layer.modules())
    norms = [module for module in layer.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
    assert (layer.stride, layer.padding, layer.groups) == ((2, 2), (1, 1), 1)


def test_it_survives_copies_checkpoints_and_averages(net: nn.Module, x: Tensor) -> None:
    wide = expand(net, "repvgg", x)
    other = expand(net, "repvgg", x)
    file = io.BytesIO()
    torch.save(wide.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    average = AveragedModel(copy.deepcopy(wide))
    average.update_parameters(wide)
    for model in (other, average.eval()):
        assert fold_error(model(x), net(x)) <= 1e-10


def test_it_trains_and_deploys(net: nn.Module, x: Tensor) -> None:
    wide = expand(net, "repvgg", x).train()
    groups = parameter_groups(wide, 0.01, 0.1)
    assert sum(len(g["params"]) for g in groups) == len(list(wide.parameters()))
    optimizer = torch.optim.SGD(groups)
    wide(x).square().mean().backward()
    optimizer.step()
    wide.eval()
    expected = wide(x)
    for module in wide.modules():
        if isinstance(module, Expanded):
            module.switch_to_deploy()
    assert fold_error(wide(x), expected) <= 1e-10


def test_other_people_s_fusing_may_write_into_it(net: nn.Module, x: Tensor) -> None:
    """As ultralytics does: ``conv.weight, conv.bias = folded(conv, norm)``."""
    wide = expand(net, "repvgg", x, where="stem")
    layer = expanded(wide, "stem").train()
    weight, bias = layer.weight, layer.bias
    assert bias is not None
    layer.weight, layer.bias = nn.Parameter(2 * weight.detach()), nn.Parameter(2 * bias.detach())
    assert [name for name, _ in layer.named_parameters()] == ["branches.weight", "branches.bias"]
    assert fold_error(layer.weight, 2 * weight) == 0
    expected = nn.functional.conv2d(x, 2 * weight, 2 * bias, 2, 1)
    assert fold_error(layer(x), expected) <= 1e-10


def test_a_recipe_that_adds_nothing_leaves_a_layer_plain(generator: torch.Generator) -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1)).eval()
    x = torch.randn(1, 4, 7, 5, generator=generator)
    done = expand_(net, "repvgg", x, where="[02]")
    assert done.layers == ("2",)
    assert done.left == (("0", "the recipe makes one branch of it, which is what it is"),)
    with pytest.raises(
        ValueError, match="no convolution of the model can be expanded; 0: the recipe makes one"
    ):
        expand_(net, "repvgg", x, where="0")


@pytest.mark.parametrize(
    ("recipe", "where", "message"),
    [
        ("repvgg", "nothing.*", "selects no convolution"),
        (
            "repghost",
            "stem",
            "stem: RepGhost adds the input itself, which needs as many channels out as in and stride 1",
        ),
        ("replk", "valid", r"valid: small=5 is larger than the kernel \(3, 3\): use a smaller one"),
        ("nonsense", None, "none of repvgg"),
        ("repvgg", "stem.branches.*", "selects no convolution"),
    ],
)
def test_bad_input_leaves_the_model_alone(
    net: nn.Module, x: Tensor, recipe: str, where: str, message: str
) -> None:
    before = {name: type(module) for name, module in net.named_modules()}
    with pytest.raises(ValueError, match=message):
        expand_(net, recipe, x, where=where)
    assert {name: type(module) for name, module in net.named_modules()} == before


@pytest.mark.slow
def test_a_sum_of_one_is_a_plain_layer(generator: torch.Generator) -> None:
    """As YOLOv5's unfused layers keep a convolution and its norm; the block still folds as a whole."""
    network = yolov5("yolov5n", channels=[4, 4, 8, 8, 8], depths=[1, 1, 1, 1], num_classes=1)
    x = torch.rand(1, 3, 64, 64, generator=generator)
    randomize(network, generator, x).eval()
    expected, deployed = network(x), copy.deepcopy(network).fuse().state_dict()
    done = expand_(network, "repvgg", x, where="*.bottlenecks.*second*")
    assert len(done.layers) == 8
    assert not done.left
    assert fold_error(network(x), expected) <= 1e-5
    with pytest.raises(ValueError, match=r"second\.branches\.dense\.0 already"):
        expand_(network, "repvgg", x, where="*.bottlenecks.*second*")
    network.fuse()
    assert fold_error(network(x), expected) <= 1e-5
    assert {n: v.shape for n, v in network.state_dict().items()} == {n: v.shape for n, v in deployed.items()}


def test_expanding_twice_is_an_error(net: nn.Module, x: Tensor) -> None:
    expand_(net, "repvgg", x, where="stem")
    with pytest.raises(ValueError, match="branch of stem already"):
        expand_(net, "repvgg", x, where="stem")
    with pytest.raises(ValueError, match="training mode"):
        expand_(net.train(), "repvgg", x)


def test_a_mixer_of_any_scale(generator: torch.Generator) -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU()).double().eval()
    x = torch.randn(2, 4, 9, 7, generator=generator, dtype=torch.float64)
    assert fold_error(expand(net, partial(Mixer, num_branches=2, scale=0.3), x)(x), net(x)) <= 1e-10


def test_a_sum_ends_in_norms_where_every_branch_does() -> None:
    first, second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    ended = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), first)
    assert Sum({"dense": ended, "shortcut": second}).last_norms() == [first, second]
    assert Sum({"dense": ended, "shortcut": nn.Identity()}).last_norms() == []
    assert Sum({"dense": ended, "shortcut": nn.Identity()}, norm=second).last_norms() == [second]
