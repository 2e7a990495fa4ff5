"""``switch_to_deploy`` as people call it: nested, in loops, twice, on their own containers."""

import copy
import logging
import pickle
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.support import fold_error, randomize
from unbranch.affine import NotLinear
from unbranch.blocks import Block, Branches, ConvSpec, Deployable, MobileOneBlock, RepVGGBlock, Sum


class Bottleneck(Deployable, nn.Module):
    """A user's own container with a residual around two blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1 = RepVGGBlock(channels, channels, 1, activation="silu")
        self.cv2 = RepVGGBlock(channels, channels, groups=2, activation="silu")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class C3(Deployable, nn.Module):
    """YOLO's block, with a plain layer, an attribute and an index as such models have."""

    def __init__(self, channels: int, depth: int = 2) -> None:
        super().__init__()
        self.f, self.i = -1, 4
        self.cv1 = nn.Conv2d(channels, channels // 2, 1)
        self.cv2 = MobileOneBlock(channels, channels // 2, 1, num_branches=2)
        self.m = nn.Sequential(*(Bottleneck(channels // 2) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1)


class Net(nn.Module):
    """Not Deployable itself."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            RepVGGBlock(3, 8, stride=2), C3(8), nn.Sequential(C3(8, 1)), nn.Conv2d(8, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


X = torch.linspace(-1, 1, 2 * 3 * 21 * 18, dtype=torch.float64).reshape(2, 3, 21, 18).sin()


@pytest.fixture
def net(generator: torch.Generator) -> nn.Module:
    return randomize(Net().double(), generator, X).eval()


T = TypeVar("T", bound=nn.Module)


def part(model: nn.Module, path: str, kind: type[T]) -> T:
    module = model.get_submodule(path)
    assert isinstance(module, kind)
    return module


def branched(model: nn.Module) -> int:
    return sum(isinstance(m, Branches) for m in model.modules())


def test_a_loop_over_modules_that_converts_the_containers(net: nn.Module) -> None:
    before, classes = (
        net(X),
        [type(m) for m in net.modules() if not isinstance(m, (Branches, nn.BatchNorm2d))],
    )
    for m in net.modules():
        if isinstance(m, C3):
            assert m.switch_to_deploy() is None
    assert branched(net) == 1
    assert fold_error(net(X), before) <= 1e-10
    for m in net.modules():
        if isinstance(m, (RepVGGBlock, MobileOneBlock)):
            m.switch_to_deploy()
    assert branched(net) == 0
    assert fold_error(net(X), before) <= 1e-10
    kept = [type(m) for m in net.modules()]
    assert [kept.count(c) for c in (C3, Bottleneck, RepVGGBlock, MobileOneBlock)] == [
        classes.count(c) for c in (C3, Bottleneck, RepVGGBlock, MobileOneBlock)
    ]
    assert (part(net, "model.1", C3).f, part(net, "model.1", C3).i) == (-1, 4)


def test_a_loop_that_converts_everything_that_it_meets(net: nn.Module) -> None:
    before = net(X)
    for m in net.modules():
        if isinstance(m, Deployable):
            m.switch_to_deploy()
    assert branched(net) == 0
    assert fold_error(net(X), before) <= 1e-10


def test_a_second_call_changes_nothing_and_says_so(net: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    c3 = part(net, "model.1", C3)
    with caplog.at_level(logging.INFO, "unbranch"):
        c3.switch_to_deploy()
        modules = list(c3.modules())
        c3.switch_to_deploy()
    assert list(c3.modules()) == modules
    assert caplog.messages == [
        "C3: 5 parts switched to deploy form",
        "C3: nothing to switch, no part is in training form",
    ]


def test_hooks_outside_the_sum_survive(net: nn.Module) -> None:
    block = part(net, "model.0", RepVGGBlock)
    seen: list[torch.Size] = []
    for module in (block, block.activation, part(net, "model.1", C3)):
        module.register_forward_hook(lambda _m, _args, out: seen.append(out.shape))
    for m in net.modules():
        if isinstance(m, Deployable):
            m.switch_to_deploy()
    net(X)
    assert len(seen) == 3


def test_training_mode_is_refused_with_the_path_and_nothing_changes(net: nn.Module) -> None:
    c3 = part(net, "model.1", C3)
    late = part(c3, "m.1.cv2", RepVGGBlock)
    late.train()
    modules = list(net.modules())
    with pytest.raises(
        ValueError, match=r"^m\.1\.cv2 \(RepVGGBlock\): in training mode.*call eval\(\) first"
    ):
        c3.switch_to_deploy()
    assert list(net.modules()) == modules
    late.eval()
    c3.switch_to_deploy()
    assert branched(c3) == 0


def test_one_norm_in_training_mode_is_enough_to_refuse(net: nn.Module) -> None:
    block = part(net, "model.0", RepVGGBlock)
    block.get_submodule("branches.dense0.norm").train()
    with pytest.raises(ValueError, match=r"^RepVGGBlock: in training mode"):
        block.switch_to_deploy()


def test_autocast_is_refused(net: nn.Module) -> None:
    c3 = part(net, "model.1", C3)
    with torch.autocast("cpu"), pytest.raises(ValueError, match="autocast"):
        c3.switch_to_deploy()
    assert branched(c3) == 5


def test_a_shared_block_is_converted_once(generator: torch.Generator) -> None:
    block = RepVGGBlock(4, 4)

    class Twice(Deployable, nn.Sequential):
        pass

    model = Twice(block, nn.ReLU(), block).double().eval()
    randomize(model, generator)
    x = torch.randn(1, 4, 7, 6, dtype=torch.float64, generator=generator)
    before = model(x)
    model.switch_to_deploy()
    assert model[0] is model[2] is block
    assert fold_error(model(x), before) <= 1e-10


def test_copies_and_pickles_before_and_after(net: nn.Module) -> None:
    before = net(X)
    twin = copy.deepcopy(net)
    for m in twin.modules():
        if isinstance(m, Deployable):
            m.switch_to_deploy()
    assert branched(net) > 0
    assert branched(twin) == 0
    for model in (net, twin, copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert fold_error(model(X), before) <= 1e-10
    later = part(copy.deepcopy(net), "model.1", C3)
    later.switch_to_deploy()
    assert branched(later) == 0


def test_no_attribute_but_the_child_changes() -> None:
    block = RepVGGBlock(4, 4).eval()
    before = {name: value for name, value in vars(block).items() if name != "_modules"}
    block.switch_to_deploy()
    assert type(block) is RepVGGBlock
    assert {name: value for name, value in vars(block).items() if name != "_modules"} == before
    assert list(block.state_dict()) == ["branches.weight", "branches.bias"]


def test_the_random_state_is_left_alone() -> None:
    block = RepVGGBlock(4, 4).eval()
    state = torch.get_rng_state()
    block.switch_to_deploy()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_deployed_model_trains(net: nn.Module) -> None:
    for m in net.modules():
        if isinstance(m, Deployable):
            m.switch_to_deploy()
    before = net(X)
    net.train().requires_grad_()
    assert fold_error(net(X), before) == 0
    net(X).sum().backward()
    assert net.get_parameter("model.0.branches.weight").grad is not None


@pytest.mark.parametrize("compiled_first", [True, False])
def test_compiled_and_exported(compiled_first: bool, net: nn.Module) -> None:
    before = net(X)
    compiled = torch.compile(net, backend="aot_eager")
    if compiled_first:
        assert fold_error(compiled(X), before) <= 1e-10
    for m in net.modules():
        if isinstance(m, Deployable):
            m.switch_to_deploy()
    assert fold_error(compiled(X), before) <= 1e-10
    exported = torch.export.export(net, (X,))
    assert fold_error(exported.module()(X), before) <= 1e-10
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert sum("batch_norm" in name for name in called) == 0
    assert sum("conv2d" in name for name in called) == sum(isinstance(m, nn.Conv2d) for m in net.modules())


def test_inference_mode_leaves_parameters_that_can_be_trained(net: nn.Module) -> None:
    block = part(net, "model.0", RepVGGBlock)
    with torch.inference_mode():
        block.switch_to_deploy()
    block.requires_grad_()
    block(X).sum().backward()
    assert block.get_parameter("branches.weight").grad is not None


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: AveragedModel(m, use_buffers=True)])
def test_inside_wrappers(wrap: Callable[[nn.Module], nn.Module], net: nn.Module) -> None:
    wrapped = wrap(net).eval()
    before = wrapped(X)
    for m in wrapped.modules():
        if isinstance(m, Deployable):
            m.switch_to_deploy()
    assert branched(wrapped) == 0
    assert fold_error(wrapped(X), before) <= 1e-10


def test_a_mixin_on_what_is_no_module_is_refused() -> None:
    class Lonely(Deployable):
        pass

    with pytest.raises(TypeError, match="Lonely is not"):
        Lonely().switch_to_deploy()


def test_a_block_of_one_s_own_is_a_recipe(generator: torch.Generator) -> None:
    """1xk and kx1 beside the kxk (ACNet), written as a user would."""

    def recipe(spec: ConvSpec) -> Sum:
        k = spec.kernel[0]
        return Sum(
            {"square": spec.conv_norm(), "row": spec.conv_norm((1, k)), "column": spec.conv_norm((k, 1))}
        )

    block = Block(4, 6, 3, 2, recipe, padding_mode="reflect").double()
    x = torch.randn(2, 4, 11, 8, dtype=torch.float64, generator=generator)
    randomize(block, generator, x)
    before = block.eval()(x)
    block.switch_to_deploy()
    assert fold_error(block(x), before) <= 1e-10


def test_a_norm_after_the_sum_folds_with_it(generator: torch.Generator) -> None:
    """QARepVGG's order, written as a user would."""

    def recipe(spec: ConvSpec) -> Sum:
        branches = {
            "dense": spec.conv_norm(),
            "pointwise": nn.Sequential(spec.conv(1)),
            "identity": nn.Identity(),
        }
        return Sum(branches, norm=spec.norm(spec.out_channels))

    block = Block(4, 4, 3, 1, recipe).double()
    x = torch.randn(2, 4, 11, 8, dtype=torch.float64, generator=generator)
    randomize(block, generator, x)
    before = block.eval()(x)
    block.switch_to_deploy()
    assert fold_error(block(x), before) <= 1e-10
    assert list(block.state_dict()) == ["branches.weight", "branches.bias"]


def test_a_recipe_that_is_no_convolution_is_refused_and_nothing_changes() -> None:
    def recipe(spec: ConvSpec) -> Sum:
        return Sum({"dense": nn.Sequential(spec.conv_norm(), nn.ReLU())})

    block = Block(4, 4, 3, 1, recipe).eval()
    branches = block.branches
    with pytest.raises(NotLinear, match=r"^Block: "):
        block.switch_to_deploy()
    assert block.branches is branches
