"""Every recipe, of every convolution that it can express: even kernels, any padding, and what it becomes again."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch
from tests.support import fold_error, randomize, randomize_norms
from unbranch.blocks.spec import NORMS
from unbranch.expand import RECIPES, Expanded, calibrate, expand, expand_, expand_like_

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

SMALLEST = {"replk": 7, "unireplk": 13}
KEEP_CHANNELS = ("repghost", "repmixer")
SIZES = {1: (31,), 2: (19, 17), 3: (9, 8, 7)}


@dataclass(frozen=True)
class Case:
    """A convolution; ``padding`` and the rest are arguments of torch's layer."""

    dims: int
    kernel: int | tuple[int, ...]
    stride: int | tuple[int, ...]
    padding: Any
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    channels: tuple[int, int] = (4, 6)
    norm: bool = True
    mode: str = "zeros"

    def __str__(self) -> str:
        return "-".join(str(value).replace(" ", "") for value in vars(self).values())

    def layers(self, recipe: str) -> nn.Sequential:
        """The convolution, with a bias where no norm follows, of a size that the recipe takes."""
        make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.dims - 1]
        kernel: Any = self.kernel
        if recipe in SMALLEST and self.dims < 3 and isinstance(kernel, int):
            kernel = SMALLEST[recipe] + (kernel % 2 == 0)
        sampling: Any = (kernel, self.stride, self.padding, self.dilation)
        layer = make(*self.channels, *sampling, self.groups, not self.norm, self.mode)
        norms = [NORMS[self.dims - 1](self.channels[1], eps=1e-3)] if self.norm else []
        return nn.Sequential(layer, *norms, nn.SiLU()).double().eval()

    def size(self, recipe: str) -> tuple[int, ...]:
        """Of an input that holds the kernel."""
        return (33, 30) if recipe in SMALLEST and self.dims == 2 else SIZES[self.dims]

    def expressible(self, recipe: str) -> bool:
        """By what a recipe asks for beside the kernel and the padding, which it takes as they are."""
        keeps = self.channels[0] == self.channels[1] and self.stride == 1
        if recipe == "edge":
            return self.dims == 2 and self.kernel == 3
        if recipe == "acnet":
            return self.dims > 1 and self.kernel != 1
        if self.kernel == 1 and recipe in ("repvgg", "repconvn"):
            return keeps and recipe == "repvgg"
        if recipe in SMALLEST:
            return self.dims < 3 and isinstance(self.kernel, int)
        return keeps or recipe not in KEEP_CHANNELS


CASES = (
    Case(2, 3, 1, 0, channels=(4, 4)),
    Case(2, 4, 4, 0),
    Case(2, 3, 1, 3, groups=2, channels=(4, 4), norm=False),
    Case(2, 4, 1, "same", dilation=2, channels=(4, 4)),
    Case(1, 4, 1, "same", groups=4, channels=(4, 4), norm=False),
    Case(2, (3, 4), (2, 1), (0, 3), (1, 2), groups=2),
    Case(3, 2, 2, 0),
)
MORE = (
    Case(1, 1, 1, 1, channels=(4, 4)),
    Case(1, 5, 3, 1),
    Case(2, 1, 2, 1, norm=False),
    Case(2, 2, 1, "valid", channels=(4, 4)),
    Case(2, 3, 1, "same", dilation=2, groups=4, channels=(4, 4)),
    Case(2, 3, 2, 0, dilation=2, groups=2, norm=False),
    Case(2, 4, 2, 1, channels=(8, 2)),
    Case(2, 4, 1, "same", channels=(4, 4), mode="reflect"),
    Case(2, 4, 1, "same", dilation=2, channels=(4, 4), mode="replicate"),
    Case(2, 3, 1, 0, channels=(4, 4), mode="circular"),
    Case(2, 3, 1, 4, groups=4, channels=(4, 4), mode="circular"),
    Case(2, 2, 2, 1, mode="reflect"),
    Case(3, 3, 1, "valid", channels=(4, 4), groups=2),
    Case(3, 4, 1, "same", channels=(4, 4)),
    Case(3, 3, 2, 2, norm=False),
)


def _everyday(case: Case, recipe: str) -> bool:
    return case == CASES[0] or (case in CASES and recipe in ("repvgg", "acnet", "dbb", "bottleneck"))


@pytest.mark.parametrize(
    ("case", "recipe"),
    [
        pytest.param(
            case, recipe, id=f"{recipe}-{case}", marks=[] if _everyday(case, recipe) else pytest.mark.slow
        )
        for case in (*CASES, *MORE)
        for recipe in RECIPES
    ],
)
def test_it_has_branches_and_becomes_itself_again(
    case: Case, recipe: str, generator: torch.Generator
) -> None:
    net = case.layers(recipe)
    x = torch.randn(2, case.channels[0], *case.size(recipe), generator=generator, dtype=torch.float64)
    randomize(net, generator, x)
    if not case.expressible(recipe):
        _refused(net, recipe, x)
        return
    wide = expand(net, recipe, x, where="0")
    other = x[(..., *(slice(1, None),) * case.dims)]
    assert isinstance(wide[0], Expanded)  # pyright: ignore[reportIndexIssue]
    assert fold_error(wide(x), net(x)) <= 1e-10
    assert fold_error(wide(other), net(other)) <= 1e-10
    _becomes(unbranch.reparameterize(wide, x), net, x)
    switched = copy.deepcopy(wide)
    layer = switched.get_submodule("0")
    assert isinstance(layer, Expanded)
    layer.switch_to_deploy()
    assert [name for name, _ in layer.named_parameters()] == ["branches.weight", "branches.bias"]
    assert fold_error(switched(other), net(other)) <= 1e-10
    randomize_norms(wide, generator, x)
    assert fold_error(unbranch.reparameterize(wide, x)(other), wide(other)) <= 1e-10


def _becomes(back: nn.Module, net: nn.Module, x: Tensor) -> None:
    """The convolution stands where it stood, as it was, and with a bias."""
    ours, own = back.get_submodule("0"), net.get_submodule("0")
    assert type(ours) is type(own)
    assert isinstance(ours, nn.modules.conv._ConvNd)
    assert isinstance(own, nn.modules.conv._ConvNd)
    assert set(back.state_dict()) == {"0.weight", "0.bias"}
    for name in ("kernel_size", "stride", "dilation", "groups"):
        assert getattr(ours, name) == getattr(own, name)
    assert list(ours._reversed_padding_repeated_twice) == list(own._reversed_padding_repeated_twice)
    if any(own._reversed_padding_repeated_twice):
        assert ours.padding_mode == own.padding_mode
    assert fold_error(back(x), net(x)) <= 1e-10
    plain = [p for p in unbranch.reparameterize(net, x).parameters() if p.ndim == own.weight.ndim]
    assert fold_error(ours.weight, plain[0]) <= 1e-10


def _refused(net: nn.Module, recipe: str, x: Tensor) -> None:
    """In one line, and nothing happened."""
    before = list(net.modules())
    with pytest.raises(ValueError, match=r"use a|use smaller|which is what it is") as caught:
        expand_(net, recipe, x, where="0")
    assert "\n" not in str(caught.value)
    assert list(net.modules()) == before


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_tensors_tell_the_recipe(recipe: str, generator: torch.Generator) -> None:
    net = CASES[0].layers(recipe)
    x = torch.randn(1, 4, *CASES[0].size(recipe), generator=generator, dtype=torch.float64)
    state = expand(net, recipe, x).state_dict()
    assert expand_like_(net, state, x) == {"0": recipe}


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
@pytest.mark.parametrize(
    "recipe",
    ["dbb", "qarepvgg", *(pytest.param(r, marks=pytest.mark.slow) for r in ("repvgg", "orepa", "repvit"))],
)
def test_calibrated_it_trains_as_the_plain_layer_did(
    case: Case, recipe: str, generator: torch.Generator
) -> None:
    net = case.layers(recipe)
    x = torch.randn(8, case.channels[0], 19, 17, generator=generator, dtype=torch.float64) + 0.3
    randomize(net, generator, x)
    wide = expand(net, recipe, x)
    assert calibrate(wide, [x[:3], x[3:]]) > 0
    assert fold_error(wide(x), net(x)) <= 1e-10
    # The border inside a diverse branch block follows the running statistics in training too; a valid one has none.
    limit = 0.15 if recipe == "dbb" and case.padding == "same" else 2e-3
    assert fold_error(wide.train()(x), copy.deepcopy(net).train()(x)) < limit


def test_circular_padding_around_a_cropped_end_is_refused(generator: torch.Generator) -> None:
    """Its 1x1 branch would read one pixel that wraps and leave one out."""
    net = Case(2, 4, 1, "same", dilation=2, channels=(4, 4), mode="circular").layers("repvgg")
    x = torch.randn(1, 4, 9, 8, generator=generator, dtype=torch.float64)
    before = list(net.modules())
    with pytest.raises(ValueError, match=r"0: a branch would have circular padding \(\(1, -1\), \(1, -1\)\)"):
        expand_(net, "repvgg", x)
    assert list(net.modules()) == before


class PadsItself(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (1, 1, 1, 1)))


class PadsBySize(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (0, input.shape[-1] % 2, 0, 0)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            PadsItself,
            r"the layer is conv 3x3 4->4 with padding \(\(1, 1\), \(1, 1\)\): give the convolution itself",
        ),
        (PadsBySize, "computed from the input's size: put a plain convolution in its place"),
    ],
)
def test_padding_that_is_not_the_layer_s_own_is_refused(kind: type[nn.Conv2d], message: str) -> None:
    net = nn.Sequential(kind(4, 4, 3), nn.ReLU()).eval()
    before = list(net.modules())
    with pytest.raises(ValueError, match=message):
        expand_(net, "repvgg", torch.zeros(1, 4, 9, 9), where="0")
    assert list(net.modules()) == before


def test_it_shows_how_the_plain_layer_pads(generator: torch.Generator) -> None:
    x = torch.randn(1, 4, 9, 8, generator=generator, dtype=torch.float64)
    shown = []
    for padding in (0, "valid", (3, 0), "same"):
        layer = expand(Case(2, 4, 1, padding).layers("repvgg"), "repvgg", x).get_submodule("0")
        assert isinstance(layer, Expanded)
        shown.append(layer.padding)
    assert shown == [(0, 0), (0, 0), (3, 0), "same"]


def test_it_folds_with_what_follows_as_the_plain_layer_does(generator: torch.Generator) -> None:
    """A bottleneck's own layers are a chain, which is to become one layer where the convolution was."""
    last = (nn.Conv2d(6, 3, 1), nn.BatchNorm2d(3), nn.SiLU())
    net = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), *last).double().eval()
    x = torch.randn(2, 4, 9, 8, generator=generator, dtype=torch.float64)
    randomize(net, generator, x)
    plain = unbranch.reparameterize(net, x)
    back = unbranch.reparameterize(expand(net, "bottleneck", x, where="0"), x)
    assert list(back.state_dict()) == list(plain.state_dict()) == ["0.weight", "0.bias"]
    assert fold_error(back(x), net(x)) <= 1e-10
