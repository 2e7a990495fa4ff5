"""YOLOv7: sizes, heads with implicit knowledge, folding of whole networks, whatever their layers and classes."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support import fold_error, randomize
from unbranch.blocks import Block, ImplicitConv, RepConv, RepConvOREPA
from unbranch.models import create
from unbranch.models.yolov7 import (
    ELAN,
    SPPCSPC,
    Description,
    IAuxDetect,
    IDetect,
    Join,
    Shrink,
    YOLOv7,
    yolov7,
)

# With 80 classes, in training form. Published: 6.2 M, 36.9 M deployed (37.62 M as it is trained), 70.4 M
# deployed (82 M with the auxiliary levels).
PARAMETERS = {"yolov7-tiny": 6_228_762, "yolov7": 37_622_682, "yolov7-w6": 82_312_436}
NAMES = list(PARAMETERS)


def small(network: str = "yolov7-tiny", seed: int = 3, **options: Any) -> YOLOv7:
    """A narrow network of the same layout, random in every number, in eval mode and float64."""
    generator = torch.Generator().manual_seed(seed)
    made = yolov7(network, **({"width": 0.125, "num_classes": 3} | options)).double()
    randomize(made, generator, torch.rand(1, 3, 64, 64, generator=generator, dtype=torch.float64))
    with torch.no_grad():
        made.set_anchors(torch.rand(made.detect.anchors.shape, generator=generator) * 50 + 5)
    return made.eval()


def pictures(stride: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.rand(2, 3, 2 * stride, 3 * stride, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        network = create(name)
    assert isinstance(network, YOLOv7)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "millions"), [("yolov7-tiny", 6.2), ("yolov7", 36.9), ("yolov7-w6", 70.4)])
def test_published_sizes_deployed(name: str, millions: float) -> None:
    network = yolov7(name).eval().fuse()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(("name", "levels"), [("yolov7-tiny", 3), ("yolov7", 3), ("yolov7-w6", 4)])
def test_training_gives_raw_maps_and_eval_gives_boxes(name: str, levels: int) -> None:
    network = small(name).train()
    stride = network.stride
    maps = network(pictures(stride))
    assert isinstance(maps, list)
    sides = [(2, 3, 2 * stride // s, 3 * stride // s, 8) for s in network.description.strides]
    assert [tuple(m.shape) for m in maps] == sides * (2 if name == "yolov7-w6" else 1)
    network.eval()
    with torch.no_grad():
        boxes = network(pictures(stride))
        assert torch.equal(boxes, network.detect.decode(network.maps(pictures(stride))))
    assert boxes.shape[1] == sum(3 * s[2] * s[3] for s in sides[:levels])


CLASSES = (1, 2, 7)
BLOCKS: list[dict[str, Any]] = [
    {},
    {"block": "mobileone"},
    {"block": "repconv_orepa"},
    {"block": {"default": "orepa", "out1": {"kind": "repconv", "groups": 4}}},
    {"block": {"stage2": {"kind": "mobileone", "num_branches": 2, "se": 0.25}}, "activation": "silu"},
]


@pytest.mark.parametrize(
    ("name", "classes", "options"),
    [
        *(
            ("yolov7-tiny", classes, options)
            for classes, options in zip((1, 2, 7, 3, 80), BLOCKS, strict=True)
        ),
        ("yolov7", 3, {}),
        ("yolov7-w6", 1, {"block": "repvgg"}),
    ],
    ids=str,
)
def test_fusing_does_everything_once_and_nothing_twice(
    name: str, classes: int, options: dict[str, Any]
) -> None:
    network = small(name, num_classes=classes, **options)
    images = pictures(network.stride)
    with torch.no_grad():
        before, maps = network(images), network.maps(images)
        assert not network.deployed
        assert network.fuse() is network
        assert network.deployed
        assert fold_error(network(images), before) < 1e-10
        assert all(fold_error(a, b) < 1e-10 for a, b in zip(network.maps(images), maps, strict=True))
        once = copy.deepcopy(network.state_dict())
        kept = {path: id(module) for path, module in network.named_modules()}
        assert network.fuse() is network
        assert {path: id(module) for path, module in network.named_modules()} == kept
        assert all(torch.equal(once[key], value) for key, value in network.state_dict().items())
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any("implicit" in key or "auxiliary" in key for key in once)


def test_folding_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval"):
        small().train().fuse()


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_a_heads_level_is_the_formula_and_folds(classes: int) -> None:
    """m · (w (x + a) + b), in plain sums over channels, before and after."""
    generator = torch.Generator().manual_seed(classes)
    head = IDetect([6, 5], [[(3, 5), (7, 2)]] * 2, [8, 16], classes).double().eval()
    randomize(head, generator)
    x = [torch.randn(2, c, 4, 3, generator=generator, dtype=torch.float64) for c in (6, 5)]
    expected = []
    for layer, features in zip(head.maps, x, strict=True):
        own = {name.split(".")[-2]: p for name, p in layer.named_parameters() if "implicit" in name}
        weight, bias = (dict(layer.named_parameters())[f"branches.conv.{n}"] for n in ("weight", "bias"))
        y = torch.einsum("oc,nchw->nohw", weight[..., 0, 0], features + own["add"])
        y = (y + bias[:, None, None]) * own["multiply"]
        expected.append(y.unflatten(1, (2, 5 + classes)).permute(0, 1, 3, 4, 2))
    for _ in range(3):
        assert all(fold_error(a, b) < 1e-10 for a, b in zip(head.raw(x), expected, strict=True))
        assert head.fuse() is head
        assert all(isinstance(m.branches, nn.Conv2d) for m in head.maps if isinstance(m, ImplicitConv))


def test_auxiliary_levels_teach_and_are_dropped() -> None:
    head = IAuxDetect([4, 4], [6, 6], [[(3, 5)], [(7, 2)]], [8, 16], 2).double()
    randomize(head, torch.Generator().manual_seed(1))
    x = [torch.randn(1, c, 3, 3, dtype=torch.float64) for c in (4, 4, 6, 6)]
    maps = head.train()(x)
    assert len(maps) == 4
    plain = [layer(features) for layer, features in zip(head.auxiliary.children(), x[2:], strict=True)]
    assert torch.equal(maps[2], plain[0].unflatten(1, (1, 7)).permute(0, 1, 3, 4, 2))
    before = head.eval()(x)
    assert torch.equal(before, head(x[:2]))
    for _ in range(2):
        head.fuse()
        assert fold_error(head(x[:2]), before) < 1e-10
        assert not list(head.auxiliary.children())
        assert len(head.train()(x[:2])) == 2
        head.eval()
    with pytest.raises(ValueError, match="1 auxiliary levels beside 2"):
        IAuxDetect([4, 4], [6], [[(3, 5)], [(7, 2)]], [8, 16], 2)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_grouped_repconv_is_the_sum_of_its_groups(groups: int, size: tuple[int, int]) -> None:
    """Each group by itself, the identity in the group's own channels; eps 1e-3 as YOLO has it."""
    generator = torch.Generator().manual_seed(groups)
    block = RepConv(8, 8, groups=groups, norm=lambda c: nn.BatchNorm2d(c, eps=1e-3)).double().eval()
    x = torch.randn(2, 8, *size, generator=generator, dtype=torch.float64)
    randomize(block, generator, torch.randn(4, 8, 5, 7, generator=generator, dtype=torch.float64))

    def normed(y: Tensor, branch: str) -> Tensor:
        own = {
            k.removeprefix(f"{branch}."): v[:, None, None]
            for k, v in state.items()
            if k.startswith(branch) and v.ndim == 1
        }
        return (y - own["running_mean"]) / (own["running_var"] + 1e-3).sqrt() * own["weight"] + own["bias"]

    def by_group(kernel: Tensor, padding: int) -> Tensor:
        wide = F.pad(x, (padding,) * 4)
        patches = wide.unfold(2, kernel.shape[2], 1).unfold(3, kernel.shape[3], 1)
        parts = zip(patches.chunk(groups, 1), kernel.chunk(groups, 0), strict=True)
        return torch.cat([torch.einsum("ncijhw,ochw->noij", p, k) for p, k in parts], 1)

    state = block.branches.state_dict()
    dense = normed(by_group(state["dense0.conv.weight"], 1), "dense0.norm")
    pointwise = normed(by_group(state["pointwise.conv.weight"], 0), "pointwise.norm")
    expected = F.silu(dense + pointwise + normed(x, "shortcut"))
    assert fold_error(block(x), expected) < 1e-10
    block.switch_to_deploy()
    assert fold_error(block(x), expected) < 1e-10


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"stride": 2}])
@pytest.mark.parametrize("out", [8, 12])
def test_repconv_orepa_folds(out: int, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(out)
    block = RepConvOREPA(8, out, **options).double().eval()
    x = torch.randn(2, 8, 9, 6, generator=generator, dtype=torch.float64)
    randomize(block, generator, x)
    expected = block(x)
    block.switch_to_deploy()
    assert isinstance(block.branches, nn.Conv2d)
    assert fold_error(block(x), expected) < 1e-10


def reordered() -> list[dict[str, Any]]:
    """Layers in another order and with other names than any network of the paper."""
    return [
        {"name": "b", "kind": "reorg", "from": ["image"]},
        {"name": "z", "kind": "block", "from": ["b"], "channels": 8},
        {"name": "first", "kind": "maxpool", "from": ["z"]},
        {"name": "p3", "kind": "shrink", "from": ["first"], "channels": 8},
        {"name": "p4", "kind": "conv", "from": ["p3"], "channels": 12, "kernel": 3, "stride": 2},
        {"name": "p5", "kind": "shrink", "from": ["p4"], "channels": 16, "pooled": False},
        {"name": "teacher", "kind": "elan", "from": ["p5"], "channels": 8, "width": 4, "inner": 4, "depth": 1},
        {"name": "out5", "kind": "spp", "from": ["p5"], "channels": 8},
        {"name": "joined", "kind": "join", "from": ["out5", "p4"], "channels": 4},
        {"name": "out4", "kind": "elan", "from": ["joined"], "channels": 8, "width": 4, "inner": 8, "depth": 3, "dense": False},
        {"name": "out3", "kind": "join", "from": ["out4", "p3"], "channels": 4},
        {"name": "unread", "kind": "conv", "from": ["out3"], "channels": 8},
    ]  # fmt: skip


OTHER: dict[str, Any] = {
    "layers": reordered(), "outputs": ["out3", "out4", "out5"], "auxiliary": ["p3", "p4", "teacher"],
    "width": 1, "block": {"z": "repconv", "out4": "mobileone"},
}  # fmt: skip


@pytest.mark.parametrize("classes", CLASSES)
def test_layers_of_any_order_and_name_fuse(classes: int) -> None:
    network = small("yolov7", num_classes=classes, **OTHER)
    assert len(network.train().maps(pictures())) == 6
    assert "teacher" in network.auxiliary
    assert "unread" not in {*network.auxiliary, *network.layers}
    network.eval()
    with torch.no_grad():
        before = network(pictures())
        assert network.fuse().deployed
        assert fold_error(network(pictures()), before) < 1e-10
    assert "teacher" not in network.auxiliary
    assert len(network.train().maps(pictures())) == 3


def test_layers_mean_what_they_say() -> None:
    x = torch.randn(2, 6, 8, 6)
    for depth, dense, joined in ((4, False, [3, 1]), (4, True, [3, 2, 1, 0]), (3, False, [2, 0])):
        elan = ELAN(6, 8, width=4, inner=2, depth=depth, dense=dense)
        randomize(elan, torch.Generator().manual_seed(depth), x).eval()
        made = [elan.main(x)]
        for block in elan.blocks:
            made.append(block(made[-1]))
        parts = [made[i + 1] for i in joined] + [made[0], elan.bypass(x)]
        assert torch.equal(elan(x), elan.merge(torch.cat(parts, 1)))
    spp = SPPCSPC(6, 4)
    randomize(spp, torch.Generator().manual_seed(1), x).eval()
    narrow = spp.before(x)
    wide = [F.max_pool2d(narrow, k, 1, k // 2) for k in (5, 9, 13)]
    assert torch.equal(
        spp(x), spp.merge(torch.cat((spp.after(torch.cat((narrow, *wide), 1)), spp.bypass(x)), 1))
    )
    shrink, half = Shrink(6, 4).eval(), torch.randn(2, 3, 4, 3)
    assert torch.equal(shrink(x, half), torch.cat((shrink.down(x), shrink.pool(x), half), 1))
    join = Join(3, 6, 4).eval()
    assert torch.equal(
        join(half, x)[:, 4:], join.reduce(half).repeat_interleave(2, 2).repeat_interleave(2, 3)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_description_survives_json(name: str) -> None:
    network = small(name, num_classes=2, names=["a", "b"], block={"stage1": {"kind": "repvgg", "se": 0.5}})
    stored = network.description.to_dict()
    again = Description.from_dict(json.loads(json.dumps(stored)))
    assert again == network.description
    mine, theirs = network.state_dict(), yolov7(again).state_dict()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}


def changed(**layer: Any) -> list[dict[str, Any]]:
    return [{**one, **layer} if one["name"] == layer.get("name", "p4") else one for one in reordered()]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"network": "yolov7-e7"}, "network: 'yolov7-e7'"),
    ({"netwrok": "yolov7"}, "unknown key netwrok"),
    ({"width": 0}, "width: 0"),
    ({"width": "half"}, "width: 'half'"),
    ({"block": {"stage9": "repvgg"}}, "no stage stage9"),
    ({"block": {"neck1": "repvgg2"}}, "block of neck1: 'repvgg2'"),
    ({"block": {"kind": "repvgg", "shortcut": "identity"}}, "block of out1"),
    ({"block": {"out1": {"kind": "repconv", "groups": 3}}}, "block of out1: repconv"),
    ({"anchors": [[1, 2], [3, 4]]}, "2 levels"),
    ({"anchors": [[1, 2]] * 4}, "outputs: maps of strides (8, 16, 32) for anchors of strides (8, 16, 32, 64)"),
    ({"outputs": ["out3", "out2", "out1"]}, "outputs: maps of strides (32, 16, 8)"),
    ({"outputs": ["nothing"]}, "outputs: there is no layer nothing"),
    ({"auxiliary": ["stem1", "out1", "out2"]}, "auxiliary: maps of strides (2, 8, 16)"),
    ({"layers": [3]}, "layers: "),
    ({"layers": [{"name": "a"}]}, "a name, a kind, from"),
    (OTHER | {"layers": changed(kind="convolution")}, "layers: p4: kind 'convolution'"),
    (OTHER | {"layers": changed(kernels=3)}, "conv has no option ['kernels']"),
    (OTHER | {"layers": changed(kernel=0)}, "['kernel'] of another kind or below 1"),
    (OTHER | {"layers": changed(channels=0)}, "0 channels; conv needs some"),
    (OTHER | {"layers": changed(name="first", channels=3)}, "maxpool makes none"),
    (OTHER | {"layers": changed(**{"from": ["out5"]})}, "p4 reads out5, which no layer before it makes"),
    (OTHER | {"layers": changed(**{"from": ["p3", "p3"]})}, "conv cannot read 2 maps"),
    (OTHER | {"layers": [*reordered(), reordered()[0]]}, "two are named b"),
    (OTHER | {"layers": changed(stride=1)}, "out3 enlarges a map of stride 8 to one of 8"),
    (OTHER | {"layers": [{**reordered()[0], "name": "pop"}]}, "'pop' cannot be a layer's name"),
]  # fmt: skip


@pytest.mark.parametrize(("plain", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_descriptions_are_one_line_that_names_the_value(plain: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Description.from_dict({"network": "yolov7-tiny"} | plain)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_blocks_stand_where_they_were_asked_for() -> None:
    with torch.device("meta"):
        network = yolov7("yolov7", block={"neck1": "mobileone"})
    found = {n.split(".")[1] for n, m in network.named_modules() if type(m).__name__ == "MobileOneBlock"}
    assert found == {"neck1"}
    assert {n.split(".")[1] for n, m in network.named_modules() if isinstance(m, RepConv)} == {
        "out1",
        "out2",
        "out3",
    }
    assert all(isinstance(m, Block) for m in network.detect.maps)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
