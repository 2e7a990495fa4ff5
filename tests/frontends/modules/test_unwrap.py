"""Containers that a fold leaves with one layer, taken out where nobody looks into them; and kept where somebody does."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontends.modules.checks import SMALL, conv_norm, convolutions, drawn, state, unchanged, x_of
from tests.support import randomize_norms
from unbranch import Report, blocks, reparameterize, reparameterize_
from unbranch.fold.certificate import tensors_in
from unbranch.ops.batch_norm import FoldedNorm


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return dict(tensors_in(model(x.clone())))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[path], tensor) for path, tensor in b.items())


def count(model: nn.Module, *kinds: type[nn.Module]) -> int:
    return sum(type(m) in kinds for m in model.modules())


def unwrap(model: nn.Module, *inputs: Tensor, **options: Any) -> tuple[Any, Report]:
    """Folded and unwrapped: the same bits as folded alone, at every size; the original is not changed."""
    inputs = inputs or (x_of(*SMALL), x_of(2, 4, 13, 11, seed=1))
    before = state(model)
    folded = reparameterize(model, inputs[0], **options)
    bare, report = reparameterize(model, inputs[0], unwrap=True, return_report=True, **options)
    unchanged(model, before)
    for x in inputs:
        assert same(outputs(bare, x), outputs(folded, x)), str(report)
    assert not any(m.training for m in bare.modules())
    assert convolutions(bare) == convolutions(folded)
    return bare, report


class Net(nn.Module):
    """A stem and a block, with a forward given."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], block: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.block, self.how = conv_norm(), block or conv_norm(), forward

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.how(self, F.relu(self.stem(x))))


def plain(net: Any, x: Tensor) -> Tensor:
    return net.block(x)


# Whole networks


@pytest.mark.parametrize("name", ["efficientvit_m0", "shvit_s1"])
def test_timm_networks_lose_as_much_as_by_timms_own_code(name: str) -> None:
    from timm.utils.model import reparameterize_model

    model = timm.create_model(name, pretrained=False).eval()
    x = torch.rand(1, 3, 224, 224)
    randomize_norms(model, torch.Generator().manual_seed(0), x)
    bare, report = unwrap(model, x)
    theirs = reparameterize_model(model)
    assert count(bare, FoldedNorm) == 0
    assert len(list(bare.modules())) <= len(list(theirs.modules()))
    assert any(note.startswith("unwrap: ") and "were taken out" in note for note in report.notes)


def test_torchvisions_resnet18_keeps_its_stages() -> None:
    model = torchvision.models.resnet18(weights=None)
    drawn(model)
    bare, _ = unwrap(model, x_of(1, 3, 64, 64), x_of(2, 3, 65, 47))
    assert [type(bare.get_submodule(f"layer{i}.0.downsample")) for i in (2, 3, 4)] == [nn.Conv2d] * 3
    assert type(bare.layer1) is nn.Sequential
    assert type(bare.bn1) is FoldedNorm  # its parent's forward names it


def test_torchvisions_containers_with_attributes_hand_them_to_their_layer() -> None:
    model = torchvision.models.mobilenet_v2(weights=None)
    drawn(model)
    bare, _ = unwrap(model, x_of(1, 3, 64, 64))
    assert count(bare, FoldedNorm, nn.Identity) == 0
    assert bare.features[1].out_channels == 16


def test_ultralytics_walked_layers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    model = tasks.DetectionModel("yolov8n.yaml", verbose=False).eval()
    x = torch.rand(1, 3, 64, 64)
    randomize_norms(model, torch.Generator().manual_seed(0), x)
    bare, report = unwrap(model, x)
    assert [(m.f, m.i, m.type) for m in bare.model] == [(m.f, m.i, m.type) for m in model.model]
    assert type(bare.model) is nn.Sequential
    assert any("model" in note for note in report.notes)


def test_our_own_repvgg() -> None:
    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(blocks.RepVGGBlock(4, 8))
            self.two = nn.Sequential(blocks.RepVGGBlock(8, 8), nn.Identity(), blocks.RepVGGBlock(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.two(F.relu(self.one(x))))

    bare, _ = unwrap(drawn(Stages()))
    assert convolutions(bare) == 3
    assert not isinstance(bare.one, nn.Sequential) or len(bare.one) > 1
    assert list(bare.two._modules) == ["0", "2"]


# What is taken out


def test_a_container_is_replaced_inside_out_and_keeps_grad_flags() -> None:
    block = nn.Sequential(
        nn.Sequential(nn.Sequential(nn.Identity()), conv_norm()), nn.Sequential(nn.Identity())
    )
    net = drawn(Net(plain, block))
    bare, report = unwrap(net)
    assert type(bare.block) is type(bare.stem) is nn.Conv2d
    assert not bare.block.weight.requires_grad
    assert f"{len(list(reparameterize(net, x_of(*SMALL)).modules())) - 3} of" in report.notes[-1]
    unfolded, _ = unwrap(net, where="nothing")
    assert list(unfolded.block._modules) == ["0", "1"]
    assert all(p.requires_grad for p in unfolded.parameters())


def test_a_container_of_nothing_is_an_identity() -> None:
    bare, _ = unwrap(drawn(Net(plain, nn.Sequential(nn.Sequential(nn.Identity()), nn.Identity()))))
    assert type(bare.block) is nn.Identity


def test_names_of_layers_that_stay_are_kept() -> None:
    block = nn.Sequential(*conv_norm(), nn.ReLU(), nn.Identity(), *conv_norm(), nn.Sigmoid())
    bare, _ = unwrap(drawn(Net(plain, block)))
    assert list(bare.block._modules) == ["0", "2", "4", "6"]


def test_layers_that_compute_are_never_taken_out() -> None:
    class Tenfold(nn.Identity):
        def forward(self, input: Tensor) -> Tensor:
            return input * 10

    bare, _ = unwrap(drawn(Net(plain, nn.Sequential(nn.Softmax(1), Tenfold(), nn.Identity()))))
    assert [type(m) for m in bare.block] == [nn.Softmax, Tenfold]


def test_a_shared_container_is_replaced_in_every_place_by_one_layer() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = conv_norm()
            self.b, self.list = self.a, nn.ModuleList([self.a, nn.Sequential(self.a)])

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.list[1](F.relu(self.list[0](F.relu(self.a(x))))))

    bare, _ = unwrap(drawn(Shared()))
    assert type(bare.a) is nn.Conv2d
    assert bare.a is bare.b is bare.list[0] is bare.list[1]


def test_half_precision_and_channels_last_stay() -> None:
    net = drawn(Net(plain)).to(torch.bfloat16, memory_format=torch.channels_last)
    bare, _ = unwrap(net, x_of(*SMALL).bfloat16())
    assert type(bare.block) is nn.Conv2d
    assert bare.block.weight.dtype == torch.bfloat16
    assert bare.block.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_root() -> None:
    root = drawn(nn.Sequential(*conv_norm(), nn.Identity()))
    assert type(unwrap(root)[0]) is nn.Conv2d
    x = x_of(*SMALL)
    expected = outputs(reparameterize(root, x), x)
    report = reparameterize_(root, x, unwrap=True)
    assert report.changed
    assert list(root._modules) == ["0"]
    assert same(outputs(root, x), expected)


def test_in_place_does_as_a_copy_does() -> None:
    net, x = drawn(Net(plain)), x_of(*SMALL)
    expected = outputs(reparameterize(net, x), x)
    assert "were taken out" in reparameterize_(net, x, unwrap=True).notes[-1]
    assert type(net.block) is nn.Conv2d
    assert same(outputs(net, x), expected)


def test_by_default_containers_stay() -> None:
    folded, report = reparameterize(drawn(Net(plain)), x_of(*SMALL), return_report=True)
    assert [type(m) for m in folded.block] == [nn.Conv2d, FoldedNorm]
    assert not any("unwrap" in note for note in report.notes)


# What is kept


HOOKS = {
    "forward": lambda m: m.register_forward_hook(lambda *given: None),
    "before": lambda m: m.register_forward_pre_hook(lambda *given: None),
    "backward": lambda m: m.register_full_backward_hook(lambda *given: None),
    "state": lambda m: m.register_state_dict_post_hook(lambda *given: None),
    "load": lambda m: m.register_load_state_dict_pre_hook(lambda *given: None),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_keep_a_container_and_an_identity(kind: str) -> None:
    net = drawn(
        Net(plain, nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1)), nn.Sequential(nn.Identity(), nn.ReLU())))
    )
    HOOKS[kind](net.block[0])
    HOOKS[kind](net.block[1][0])
    bare, _ = unwrap(net)
    assert type(bare.block[0]) is nn.Sequential
    assert [type(m) for m in bare.block[1]] == [nn.Identity, nn.ReLU]


LOOKS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "index": lambda net, x: net.block[1](net.block[0](net.block(x).sigmoid())),
    "name": lambda net, x: net.block.get_submodule("0")(net.block(x).sigmoid()),
    "length": lambda net, x: net.block(x).sigmoid() * len(net.block),
    "walk": lambda net, x: net.block(x).sigmoid() + sum(i * layer(x).sigmoid() for i, layer in enumerate(net.block)),
    "children": lambda net, x: net.block(x).sigmoid() * len(list(net.block.children())),
    "attribute": lambda net, x: net.block(x).sigmoid() * (2 if hasattr(net.block, "weight") else 3),
    "parameters": lambda net, x: net.block(x).sigmoid() * sum(1 for _ in net.block.parameters()),
}  # fmt: skip


@pytest.mark.parametrize("how", LOOKS)
def test_a_container_that_other_code_looks_into_is_kept(how: str) -> None:
    bare, report = unwrap(drawn(Net(LOOKS[how])))
    assert type(bare.block) is nn.Sequential
    assert len(bare.block) == 2
    assert type(bare.stem) is nn.Conv2d
    assert report.notes[-1].endswith("looks into them, or may: block")


def test_a_container_that_is_only_walked_keeps_its_entries() -> None:
    def walked(net: Any, x: Tensor) -> Tensor:
        for i, layer in enumerate(net.block):
            x = layer(x).sigmoid() ** (i + 1)
        return x

    bare, _ = unwrap(drawn(Net(walked, nn.Sequential(nn.Identity(), conv_norm(), nn.Identity()))))
    assert [type(m) for m in bare.block] == [nn.Identity, nn.Conv2d, nn.Identity]


def test_a_container_that_another_size_may_look_into_is_kept() -> None:
    def by_size(net: Any, x: Tensor) -> Tensor:
        return net.block[0](x) if x.shape[2] > 9 else net.block(x)

    net = drawn(Net(by_size, nn.Sequential(nn.Identity(), nn.ReLU())))
    bare, _ = unwrap(net)
    assert [type(m) for m in bare.block] == [nn.Identity, nn.ReLU]
    believed = reparameterize(net, x_of(*SMALL), unwrap=True, trust="observed")
    assert type(believed.block) is nn.ReLU


def test_a_container_held_in_a_list_or_never_called_is_kept() -> None:
    net = drawn(Net(plain))
    net.spare, net.names = nn.Sequential(nn.Identity()).eval(), {"block": [net.block]}
    bare, _ = unwrap(net)
    assert type(bare.spare) is type(bare.block) is nn.Sequential


def test_a_container_with_a_forward_parameters_or_attributes_of_its_own_is_kept() -> None:
    class Own(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    scaled = nn.Sequential(nn.ReLU())
    scaled.register_parameter("scale", nn.Parameter(torch.ones(1)))
    named: Any = nn.Sequential(nn.Conv2d(4, 4, 1))
    named.stride = 7
    bare, _ = unwrap(drawn(Net(plain, nn.Sequential(Own(nn.ReLU(), nn.Identity()), scaled, named))))
    assert [type(m) for m in bare.block] == [Own, nn.Sequential, nn.Sequential]
    assert len(bare.block[0]) == 2


class Asked(nn.Sequential):
    factor = 2


ASKS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "kind": lambda net, x: net.block(x).sigmoid() * (2 if isinstance(net.block, nn.Sequential) else 3),
    "class": lambda net, x: net.block(x).sigmoid() * net.block.factor,
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("how", ASKS)
def test_a_container_whose_kind_matters_is_named_and_nothing_is_changed(how: str, in_place: bool) -> None:
    net = drawn(Net(ASKS[how], Asked(*conv_norm())))
    before, twin, x = state(net), copy.deepcopy(net), x_of(*SMALL)
    verb = reparameterize_ if in_place else reparameterize
    with pytest.raises(ValueError, match=r"asks block \(Asked\) what it is.*leave unwrap off") as error:
        verb(net, x, unwrap=True)
    assert "\n" not in str(error.value)
    unchanged(net, before)
    assert [type(m) for m in net.modules()] == [type(m) for m in twin.modules()]
    assert same(outputs(net, x), outputs(twin, x))
    reparameterize_(net, x)


def test_a_model_that_draws_lots_is_refused() -> None:
    net = drawn(Net(lambda net, x: net.block(x) + torch.rand_like(x)))
    with pytest.raises(ValueError, match="two runs of the model differ"):
        reparameterize(net, x_of(*SMALL), unwrap=True)


def test_only_modules_have_containers() -> None:
    program: Any = torch.export.export(nn.ReLU(), (torch.zeros(2),))
    with pytest.raises(
        ValueError, match="for modules, and this ExportedProgram has no containers: leave it off"
    ):
        reparameterize(program, unwrap=True)
