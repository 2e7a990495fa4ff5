"""Where branches go: into the very convolution, with the norm directly behind it and nothing else, however its call is followed."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import unbranch
from tests.support import fold_error, randomize
from unbranch.blocks import OREPABlock
from unbranch.expand import Expanded, calibrate, expand, expand_
from unbranch.ops.batch_norm import FoldedNorm


class Calls(nn.Module):
    """A convolution and two norms, called as ``how`` says."""

    def __init__(self, how: Callable[[nn.Conv2d, nn.Module, nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.first, self.second = (
            nn.Conv2d(16, 16, 3, 1, 1),
            nn.BatchNorm2d(16),
            nn.BatchNorm2d(16),
        )
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        layer = self.conv
        assert isinstance(layer, nn.Conv2d | Expanded)
        return self.how(layer, self.first, self.second, x)  # pyright: ignore[reportArgumentType]


def three(**options: str) -> nn.Conv2d:
    return nn.Conv2d(16, 16, 3, padding=1, **options)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 16, 9, 8, generator=generator, dtype=torch.float64)


def drawn(net: nn.Module, generator: torch.Generator, x: Tensor) -> nn.Module:
    return randomize(net.double(), generator, x).eval()


def norm() -> nn.Module:
    return nn.BatchNorm2d(16, eps=1e-3)


@pytest.mark.parametrize("recipe", ["repvgg", "dbb", "qarepvgg"])
@pytest.mark.parametrize(
    ("make", "layers", "emptied"),
    [
        (lambda: nn.Sequential(three(), nn.Conv2d(16, 4, 1)), ("0",), ()),
        (lambda: nn.Sequential(three(), norm(), nn.Conv2d(16, 4, 1)), ("0",), ("1",)),
        (lambda: nn.Sequential(three(), norm(), nn.Conv2d(16, 16, 1), norm(), nn.ReLU()), ("0",), ("1",)),
        (lambda: nn.Sequential(three(), norm(), norm(), nn.ReLU()), ("0",), ("1",)),
        (lambda: nn.Sequential(three(), nn.AvgPool2d(2)), ("0",), ()),
        (lambda: nn.Sequential(three(), norm(), nn.AvgPool2d(2)), ("0",), ("1",)),
        (lambda: nn.Sequential(three(), nn.AvgPool2d(2), norm()), ("0",), ()),
        (lambda: nn.Sequential(three(), nn.Dropout(0.5), norm()), ("0",), ()),
        (lambda: nn.Sequential(nn.Conv2d(16, 16, 1), three(padding_mode="circular")), ("1",), ()),
        (lambda: nn.Sequential(norm(), three(padding_mode="circular"), norm()), ("1",), ("2",)),
        (lambda: nn.Sequential(three(), norm(), three(), norm()), ("0", "2"), ("1", "3")),
    ],
)  # fmt: skip
def test_exactly_the_convolution_and_its_norm(
    make: Callable[[], nn.Module],
    layers: tuple[str, ...],
    emptied: tuple[str, ...],
    recipe: str,
    x: Tensor,
    generator: torch.Generator,
) -> None:
    net = drawn(make(), generator, x)
    wide = copy.deepcopy(net)
    done = expand_(wide, recipe, x)
    assert (done.layers, done.left) == (layers, ())
    for (path, before), after in zip(net.named_children(), wide.children(), strict=True):
        kind = Expanded if path in layers else FoldedNorm if path in emptied else type(before)
        assert type(after) is kind
    calibrate(wide, [x])
    assert fold_error(wide(x), net(x)) <= 1e-10
    assert fold_error(unbranch.reparameterize(wide, x)(x), net(x)) <= 1e-10


def test_training_through_a_linear_tail(x: Tensor, generator: torch.Generator) -> None:
    net = drawn(nn.Sequential(three(), norm(), nn.Conv2d(16, 16, 1), norm(), nn.ReLU()), generator, x)
    wide = expand(net, "qarepvgg", x)
    calibrate(wide, [x])
    assert fold_error(wide.train()(x), copy.deepcopy(net).train()(x)) < 2e-3


def test_one_place_does_not_end_the_whole_call(x: Tensor, generator: torch.Generator) -> None:
    strided = nn.Conv2d(16, 16, 3, 2)
    net = drawn(nn.Sequential(three(), strided, nn.ReLU(), three(), nn.Conv2d(16, 4, 1)), generator, x)
    wide = copy.deepcopy(net)
    done = expand_(wide, "repghost", x)
    assert done.layers == ("0", "3")
    assert [path for path, _ in done.left] == ["1"]
    assert fold_error(wide(x), net(x)) <= 1e-10


def test_a_norm_that_others_need_stays(x: Tensor, generator: torch.Generator) -> None:
    def read_twice(conv: nn.Conv2d, first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
        y = conv(x)
        return first(y).relu() + second(y.relu())

    def serving_two(conv: nn.Conv2d, first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
        return first(conv(x)).relu() + second(first(x.relu()).relu())

    for how in (read_twice, serving_two):
        net = drawn(Calls(how), generator, x)
        wide = expand(net, "repvgg", x)
        assert isinstance(wide.get_submodule("conv"), Expanded)
        assert isinstance(wide.get_submodule("first"), nn.BatchNorm2d)
        calibrate(wide, [x])
        assert fold_error(wide(x), net(x)) <= 1e-10


def test_one_norm_behind_every_call_goes_in(x: Tensor, generator: torch.Generator) -> None:
    net = drawn(Calls(lambda c, first, second, x: second(first(c(first(c(x)).relu())).relu())), generator, x)
    wide = expand(net, "repvgg", x)
    assert isinstance(wide.get_submodule("first"), FoldedNorm)
    assert fold_error(wide(x), net(x)) <= 1e-10


@pytest.mark.parametrize(
    "how",
    [
        lambda c, first, second, x: second(c(first(c(x)).relu())),
        lambda c, first, second, x: second(c(first(c(x)).relu()).relu()),
    ],
)
def test_a_convolution_before_different_norms_is_left(
    how: Callable[[nn.Conv2d, nn.Module, nn.Module, Tensor], Tensor], x: Tensor, generator: torch.Generator
) -> None:
    shared = drawn(Calls(how), generator, x)
    net = nn.Sequential(shared, nn.ReLU(), drawn(three(), generator, x)).eval()
    done = expand_(copy.deepcopy(net), "repvgg", x)
    assert done.layers == ("2",)
    assert [path for path, _ in done.left] == ["0.conv"]
    assert "it is called 2 times, with a different norm, or none, behind each" in done.left[0][1]
    with pytest.raises(ValueError, match=r"^0.conv: it is called 2 times"):
        expand_(net, "repvgg", x, where="0.conv")


def test_a_weight_that_is_read_elsewhere_does_not_stop_calibration(
    x: Tensor, generator: torch.Generator
) -> None:
    def how(conv: nn.Conv2d, first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
        read = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
        return first(conv(x)).relu() + second(read.tanh())

    net = drawn(Calls(how), generator, x)
    wide = expand(net, "repvgg", x)
    assert isinstance(wide.get_submodule("first"), nn.BatchNorm2d)
    assert calibrate(wide, [x]) > 0
    assert fold_error(wide(x), net(x)) <= 1e-10


def test_numbers_beyond_the_dtype_are_refused(x: Tensor, generator: torch.Generator) -> None:
    net = drawn(nn.Sequential(three(), norm(), nn.ReLU()), generator, x)
    with torch.no_grad():
        net.get_buffer("1.running_var").fill_(1e-4)
        net.get_parameter("1.weight").fill_(3e4)
    with pytest.raises(ValueError, match="0: its branches would hold numbers beyond float16"):
        expand(net.half(), "orepa", x.half())


def test_a_block_with_a_factory_of_norms_is_pickled(generator: torch.Generator) -> None:
    block = OREPABlock(4, 8, norm=lambda channels: nn.BatchNorm2d(channels, eps=1e-3)).double().eval()
    x = torch.randn(2, 4, 9, 7, generator=generator, dtype=torch.float64)
    randomize(block, generator, x)
    again = pickle.loads(pickle.dumps(block))
    assert fold_error(again(x), block(x)) == 0
    again.switch_to_deploy()
    assert fold_error(again(x), block(x)) <= 1e-10
