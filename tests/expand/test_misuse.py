"""Expansion put to wrong use: refused in a line, with the model as it was; layers that are more than a convolution stay."""

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch
from tests.support import fold_error, randomize
from unbranch.blocks import RepVGGBlock
from unbranch.expand import Expanded, calibrate, expand, expand_


class Outer(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.abs())


class Scaled(nn.Conv2d):
    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        out = super().forward(input)
        return out if scale is None else out * scale


class Calls(nn.Module):
    """A layer, called as ``how`` says."""

    def __init__(self, layer: nn.Module, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.how = layer, how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.layer, x)


def conv(kind: type[nn.Conv2d] = nn.Conv2d) -> nn.Conv2d:
    return kind(4, 6, 3, 1, 1)


def two() -> nn.Module:
    return nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1)).double().eval()


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 4, 9, 7, generator=generator, dtype=torch.float64)


def hooked(method: str) -> nn.Module:
    layer = conv()
    hooks: dict[str, Any] = {
        "register_forward_hook": lambda module, args, output: 2 * output,
        "register_forward_pre_hook": lambda module, args: (2 * args[0],),
        "register_full_backward_hook": lambda module, before, after: None,
    }
    getattr(layer, method)(hooks[method])
    return nn.Sequential(layer, nn.BatchNorm2d(6), nn.ReLU())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(conv(Outer), nn.BatchNorm2d(6), nn.ReLU()), "0: Outer is not one convolution: aten.abs"),
        (lambda: Calls(conv(Scaled), lambda layer, x: layer(x, scale=x.mean())), "layer: it is called with something"),
        (lambda: Calls(conv(Scaled), lambda layer, x: layer(input=x)), "layer: it is called with something"),
        (lambda: hooked("register_forward_hook"), "0: it has a hook"),
        (lambda: hooked("register_forward_pre_hook"), "0: it has a hook"),
        (lambda: hooked("register_full_backward_hook"), "0: it has a hook"),
        (lambda: Calls(conv(), lambda layer, x: nn.functional.conv2d(x, layer.get_parameter("weight"))), "never reaches it"),
        (lambda: nn.Sequential(RepVGGBlock(4, 4), nn.Conv2d(4, 4, 1)), "more than one tap; there are branches already in 0.branches"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3)), "no plain convolution of more than one tap$"),
        (conv, "cannot be replaced in place: use expand"),
        (lambda: two().to("meta"), "0.weight is on the meta device"),
    ],
)  # fmt: skip
def test_networks(make: Callable[[], nn.Module], message: str, x: Tensor) -> None:
    net = make().double().eval()
    before = list(net.modules())
    with pytest.raises(ValueError, match=message):
        expand_(net, "repvgg", x)
    assert list(net.modules()) == before


def test_the_root_itself(x: Tensor) -> None:
    layer = conv().double().eval()
    wide = expand(layer, "repvgg", x)
    assert isinstance(wide, Expanded)
    assert fold_error(wide(x), layer(x)) <= 1e-10
    back = unbranch.reparameterize(wide, x)
    assert isinstance(back, nn.Conv2d)
    assert fold_error(back(x), layer(x)) <= 1e-10


def test_a_layer_called_by_name(x: Tensor) -> None:
    net = Calls(conv(), lambda layer, x: layer(input=x)).double().eval()
    wide = expand(net, "repvgg", x)
    assert isinstance(wide.get_submodule("layer"), Expanded)
    assert fold_error(wide(x), net(x)) <= 1e-10


def test_a_weight_read_elsewhere_is_read_after_the_fold(x: Tensor) -> None:
    def how(layer: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(layer, Expanded | nn.Conv2d)
        return layer(x) + layer.weight.sum()

    net = Calls(conv(), how).double().eval()
    folded = unbranch.reparameterize(expand(net, "repvgg", x), x)
    assert fold_error(folded(x), net(x)) <= 1e-10


@pytest.mark.parametrize(
    ("recipe", "where", "message"),
    [
        ("repvgg", ["0"], "where"),
        ("repvgg", nn.Conv2d, "neither a glob"),
        (RepVGGBlock, None, "RepVGGBlock is no recipe: name one"),
        (lambda spec: nn.ReLU(), None, "this one made a ReLU"),
    ],
)
def test_arguments(recipe: Any, where: Any, message: str, x: Tensor) -> None:
    net = two()
    before = list(net.modules())
    with pytest.raises(TypeError, match=message):
        expand_(net, recipe, x, where=where)
    assert list(net.modules()) == before


def test_where_that_selects_nothing_names_what_there_is(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"where='2' selects no convolution; the model has 0, 3$"):
        expand_(two(), "repvgg", x, where="2")


@pytest.mark.parametrize(
    ("batches", "kind", "message"),
    [
        (lambda x: x, TypeError, "pass a list of batches"),
        (lambda x: [(x, torch.arange(3))], TypeError, "a batch of 2 values is no call of Sequential"),
        (lambda x: [], ValueError, "0 saw none"),
        (lambda x: [x[:0]], ValueError, "0 saw none"),
        (lambda x: "abc", TypeError, "batches is a str: pass a list of batches"),
        (lambda x: {"x": x}, TypeError, "batches is a dict: pass a list of batches"),
        (lambda x: [x, "a"], TypeError, "a batch is a str: pass a tensor"),
        (lambda x: [x, 3], TypeError, "a batch is a int: pass a tensor"),
        (lambda x: [x, x.log()], ValueError, "0 saw, or made, numbers that are not finite"),
        (lambda x: [x, x[:, :3]], RuntimeError, "to have 4 channels, but got 3"),
    ],
)
def test_calibration(
    batches: Callable[[Tensor], Any],
    kind: type[Exception],
    message: str,
    generator: torch.Generator,
    x: Tensor,
) -> None:
    wide = expand(randomize(two(), generator, x).eval(), "repvgg", x).train()
    before = copy.deepcopy(wide.state_dict())
    with pytest.raises(kind, match=message):
        calibrate(wide, batches(x))
    assert all(torch.equal(value, before[name]) for name, value in wide.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in wide.modules())


RULED_OUT = """
import torch
from torch import nn
from unbranch.expand import calibrate, expand_

net = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()).eval()
for call in (lambda: calibrate(net, None), lambda: calibrate(net, 3), lambda: expand_(net, example_inputs=3)):
    try:
        call()
    except TypeError as error:
        print(error)
"""


def test_what_the_annotations_rule_out() -> None:
    """In a process of its own, where nobody checks them."""
    ran = subprocess.run(
        [sys.executable, "-c", RULED_OUT], capture_output=True, text=True, timeout=120, check=True
    )
    assert ran.stdout.splitlines() == [
        "batches is a NoneType: pass a list of batches, such as [x]",
        "batches is a int: pass a list of batches, such as [x]",
        "example_inputs is a int: pass a tensor, a sequence of arguments or a mapping of them",
    ]


def test_empty_batches_are_passed_over(generator: torch.Generator, x: Tensor) -> None:
    net = randomize(two(), generator, x).eval()
    wide = expand(net, "repvgg", x)
    other = copy.deepcopy(wide)
    assert calibrate(wide, [x[:0], x, x[:0]]) == calibrate(other, [x]) > 0
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in wide.state_dict().items())
    assert fold_error(wide(x), net(x)) <= 1e-10


def test_example_inputs_that_the_model_does_not_take(x: Tensor) -> None:
    net = two()
    before = list(net.modules())
    given: list[tuple[Any, type[Exception], str]] = [
        (
            x[:, :3],
            ValueError,
            r"^Sequential does not take example_inputs of shape \(3, 3, 9, 7\): .* 4 channels",
        ),
        ((x, x), ValueError, r"does not take example_inputs of shape \(3, 4, 9, 7\), \(3, 4, 9, 7\): "),
        ("x", ValueError, "does not take example_inputs of shape str: "),
    ]
    for inputs, kind, message in given:
        with pytest.raises(kind, match=message) as caught:
            expand_(net, "repvgg", inputs)
        assert "\n" not in str(caught.value)
    assert list(net.modules()) == before


def test_synchronised_norms_stay_so(generator: torch.Generator, x: Tensor) -> None:
    net = nn.Sequential(conv(), nn.SyncBatchNorm(6, eps=0.1, momentum=0.3), nn.ReLU()).double()
    randomize(net, generator, x).eval()
    wide = expand(net, "repvgg", x)
    norms = [m for m in wide.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(0.1, 0.3)}
    assert calibrate(wide, [x]) == len(norms) == 2
    assert fold_error(wide(x), net(x)) <= 1e-10


def test_the_memory_format_stays(x: Tensor) -> None:
    net = two().to(memory_format=torch.channels_last)
    wide = expand(net, "acnet", x)
    kernels = [p for p in wide.parameters() if p.ndim == 4 and p.shape[2:].numel() > 1]
    assert len(kernels) == 6
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
