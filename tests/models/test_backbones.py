"""RepVGG and MobileOne against timm's networks of the same names, and as feature pyramids."""

import math
import re
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from tests.support import fold_error, randomize
from unbranch import models
from unbranch.blocks import Block, RepVGGBlock

NAMES = [
    *(f"repvgg_{size}" for size in ("a0", "a1", "a2", "b0", "b1", "b1g2", "b1g4", "b2", "b2g2", "b2g4")),
    *(f"repvgg_{size}" for size in ("b3", "b3g2", "b3g4", "d2se")),
    *(f"mobileone_s{i}" for i in range(5)),
]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def create(name: str, **options) -> models.Backbone:
    model = models.create(name, **options)
    assert isinstance(model, models.Backbone)
    return model


def on_paper(name: str, **options) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return models.create(name, **options)


@pytest.mark.parametrize("name", [name for name in NAMES if name in timm.list_models(module="byobnet")])
def test_as_many_parameters_and_the_same_shapes_as_timm_s(name: str) -> None:
    with torch.device("meta"):
        peer = timm.create_model(name)
    ours = on_paper(name)
    assert parameters(ours) == parameters(peer)
    assert sorted(p.shape for p in ours.parameters()) == sorted(p.shape for p in peer.parameters())


# Table 4 of the paper: millions of parameters in deploy form, digits cut off.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("repvgg_a0", 8.30),
        ("repvgg_b1", 51.82),
        ("repvgg_b1g2", 41.36),
        ("repvgg_b1g4", 36.12),
        ("repvgg_b2g4", 55.77),
    ],
)
def test_the_paper_s_deployed_size(name: str, millions: float) -> None:
    model = on_paper(name)
    branches = {f"{path}.branches.": m.branches for path, m in model.named_modules() if isinstance(m, Block)}
    outside = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(tuple(branches)))
    folded = sum(
        weight.numel() + weight.shape[0]
        for m in branches.values()
        for weight in [m.get_parameter("dense0.conv.weight")]
    )
    assert math.floor((outside + folded) / 1e4) / 100 == millions


def test_the_grouped_b2_and_b3_stand_between_their_neighbours() -> None:
    for depth in ("b2", "b3"):
        dense, two, four = (parameters(on_paper(f"repvgg_{depth}{g}")) for g in ("", "g2", "g4"))
        # Grouping by g leaves 1/g of a layer's weights: what g2 saves is 2/3 of what g4 saves.
        assert abs((dense - two) / (dense - four) - 2 / 3) < 1e-3


def test_the_names_are_the_published_ones() -> None:
    assert set(NAMES) <= set(models.names())


def test_an_unknown_name_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match="no network named 'RepVGG-A0'; did you mean repvgg_a0"):
        models.create("RepVGG-A0")
    with pytest.raises(ValueError, match="no network named 'vit'; there are "):
        models.create("vit")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'repvgg_a0' is registered already"):
        models.register("repvgg_a0", models.RepVGG)


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
@pytest.mark.parametrize("size", [(64, 64), (65, 47)])
def test_pyramids_hold_what_they_say(name: str, size: tuple[int, int], generator: torch.Generator) -> None:
    everything = create(name, out_indices=(0, 1, 2, 3, 4)).eval()
    assert everything.feature_strides == (2, 4, 8, 16, 32)
    x = torch.randn(1, 3, *size, generator=generator)
    randomize(everything, generator, x)
    maps = everything(x)
    for level, channels, stride in zip(
        maps, everything.feature_channels, everything.feature_strides, strict=True
    ):
        assert level.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))
    some = create(name, out_indices=(1, 3)).eval()
    wanted = some.state_dict().keys()
    some.load_state_dict({k: v for k, v in everything.state_dict().items() if k in wanted})
    assert len(some.stages) == 3
    for level, expected in zip(some(x), (maps[1], maps[3]), strict=True):
        assert torch.equal(level, expected)


@pytest.mark.parametrize("levels", [(), (2, 1), (1, 1), (-1,), (0, 5)])
def test_levels_that_do_not_exist_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"out_indices={levels} must rise within the levels 0 (the stem) to 4")
    ):
        on_paper("repvgg_a0", out_indices=levels)


def test_channels_and_classes() -> None:
    model = models.create("mobileone_s0", in_channels=1, num_classes=7).eval()
    assert model(torch.randn(2, 1, 33, 40)).shape == (2, 7)
    headless = models.create("mobileone_s0", num_classes=0).eval()
    assert headless(torch.randn(2, 3, 33, 40)).shape == (2, 1024)


def test_lengths_that_do_not_agree_are_refused() -> None:
    with pytest.raises(ValueError, match="the lengths do not agree"):
        models.RepVGG((1, 2), (16, 32))
    with pytest.raises(ValueError, match="the lengths do not agree"):
        models.RepVGG((1, 2), (16, 32, 64), strides=(1, 2))
    with pytest.raises(ValueError, match="give one for each stage"):
        models.MobileOne((1, 2), (16, 32, 64), se_depths=(1,))


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_a_whole_network_switches(name: str, generator: torch.Generator) -> None:
    model = create(name, num_classes=10).double()
    x = torch.randn(1, 3, 65, 47, dtype=torch.float64, generator=generator)
    randomize(model, generator, x)
    before = model.eval()(x)
    model.switch_to_deploy()
    assert fold_error(model(x), before) <= 1e-10
    layers = [m for m in model.modules() if not list(m.children()) and not isinstance(m, nn.Identity)]
    assert {type(m) for m in layers} == {nn.Conv2d, nn.ReLU, nn.Linear}
    other = torch.randn(2, 3, 50, 81, dtype=torch.float64, generator=generator)
    assert model(other).shape == (2, 10)


def calls(model: nn.Module, x: torch.Tensor) -> list[str]:
    graph = torch.export.export(model.eval(), (x,)).graph
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


def by_hand(*layers: nn.Conv2d, width: int) -> nn.Module:
    stack = [part for conv in layers for part in (conv, nn.ReLU(inplace=True))]
    return nn.Sequential(*stack, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def plain_repvgg_a0() -> nn.Module:
    convs, c_in = [nn.Conv2d(3, 48, 3, 2, 1)], 48
    for depth, c_out in ((2, 48), (4, 96), (14, 192), (1, 1280)):
        for i in range(depth):
            convs.append(nn.Conv2d(c_in, c_out, 3, 2 if i == 0 else 1, 1))
            c_in = c_out
    return by_hand(*convs, width=1280)


def plain_mobileone_s0() -> nn.Module:
    convs, c_in = [nn.Conv2d(3, 48, 3, 2, 1)], 48
    for depth, c_out in ((2, 48), (8, 128), (10, 256), (1, 1024)):
        for i in range(depth):
            convs.append(nn.Conv2d(c_in, c_in, 3, 2 if i == 0 else 1, 1, groups=c_in))
            convs.append(nn.Conv2d(c_in, c_out, 1))
            c_in = c_out
    return by_hand(*convs, width=1024)


@pytest.mark.parametrize(
    ("name", "plain"), [("repvgg_a0", plain_repvgg_a0), ("mobileone_s0", plain_mobileone_s0)]
)
def test_the_deployed_network_is_the_plain_one(name: str, plain: Callable[[], nn.Module], generator) -> None:
    """Written by hand it has the same layers in the same order, and takes the deployed one's tensors as they are."""
    model = create(name)
    x = torch.randn(1, 3, 65, 47, generator=generator)
    randomize(model, generator, x)
    model.eval().switch_to_deploy()
    hand = plain().eval()
    hand.load_state_dict(dict(zip(hand.state_dict(), model.state_dict().values(), strict=True)))
    assert fold_error(model(x), hand(x)) <= 1e-6
    ours, theirs = calls(model, x), calls(hand, x)
    pooling = {
        "aten.mean.dim",
        "aten.adaptive_avg_pool2d.default",
        "aten.flatten.using_ints",
        "aten.view.default",
    }
    assert [op for op in ours if op not in pooling] == [op for op in theirs if op not in pooling]
    assert len(ours) <= len(theirs)


def test_blocks_of_another_kind(generator: torch.Generator) -> None:
    def block(*shape, **options):
        return RepVGGBlock(*shape, **options, shortcut="average", activation="silu")

    model = models.RepVGG(
        (1, 2), (8, 16, 24), strides=(1, 2, 2), in_channels=1, num_classes=3, block=block
    ).double()
    x = torch.randn(1, 1, 28, 28, dtype=torch.float64, generator=generator)
    randomize(model, generator, x)
    before = model.eval()(x)
    model.switch_to_deploy()
    assert fold_error(model(x), before) <= 1e-10


def test_an_option_that_no_backbone_has_is_refused() -> None:
    with pytest.raises(TypeError, match=r"no such option: num_clases; there are num_classes, in_channels, "):
        on_paper("mobileone_s0", num_clases=10)
