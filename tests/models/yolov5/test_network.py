"""YOLOv5 networks: sizes, shapes, decoding, blocks in C3, folding."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.support import fold_error, randomize
from unbranch.blocks import RepVGGBlock
from unbranch.models.yolov5 import C3, SPPF, Bottleneck, Conv, Detect, YOLOv5, yolov5

# Parameters with 80 classes, as published for release 6 (in millions there: 1.9, 7.2, 21.2, 46.5, 86.7; 3.2,
# … 140.7).
PARAMETERS = {
    "yolov5n": 1_872_157,
    "yolov5s": 7_235_389,
    "yolov5m": 21_190_557,
    "yolov5l": 46_563_709,
    "yolov5x": 86_749_405,
    "yolov5n6": 3_246_940,
    "yolov5s6": 12_626_620,
}


def small(**options: Any) -> YOLOv5:
    """A narrow network of the same layout, random in every number, in eval mode and float64."""
    options = {"channels": [8, 8, 16, 24, 32], "depths": [1, 2, 1, 1], "num_classes": 3} | options
    generator = torch.Generator().manual_seed(3)
    network = yolov5("yolov5n", **options).double()
    randomize(network, generator, torch.rand(1, 3, 64, 96, generator=generator, dtype=torch.float64))
    with torch.no_grad():
        network.detect.anchors.copy_(torch.rand(3, 3, 2, generator=generator) * 50 + 5)
    return network.eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        network = yolov5(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


def test_norms_are_yolos() -> None:
    network = yolov5("yolov5n", block="repvgg", bottleneck="3x3-3x3")
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 57
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


@pytest.mark.parametrize(("name", "levels"), [("yolov5n", 3), ("yolov5n6", 4)])
def test_training_gives_raw_maps_and_eval_gives_boxes(name: str, levels: int) -> None:
    network = yolov5(name, num_classes=2)
    images = torch.rand(2, 3, 64, 128)
    maps = network.train()(images)
    assert [tuple(m.shape) for m in maps] == [(2, 3, 8 >> i, 16 >> i, 7) for i in range(levels)]
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(images), network.detect.decode(network.maps(images)))
    cells = sum((8 >> i) * (16 >> i) for i in range(levels))
    assert network(images).shape == (2, 3 * cells, 7)


def test_decoding_is_the_published_formula() -> None:
    """One value at a time, in plain Python: x = (2 p − ½ + j) s, w = (2 p)² a, levels, anchors, rows, columns
    in order.
    """
    anchors = [[(3.0, 5.0), (7.0, 2.0)], [(11.0, 13.0), (17.0, 9.0)]]
    head = Detect([4, 4], anchors, strides=[8, 16], num_classes=2).double().eval()
    maps = [torch.randn(2, 2, 3, 4, 7).double(), torch.randn(2, 2, 2, 1, 7).double()]
    decoded = head.decode(maps)
    expected = []
    for level, (raw, stride) in enumerate(zip(maps, (8, 16), strict=True)):
        for a, i, j in itertools.product(range(2), range(raw.shape[2]), range(raw.shape[3])):
            p = 1 / (1 + (-raw[:, a, i, j]).exp())
            width, height = anchors[level][a]
            x, y = (2 * p[:, 0] - 0.5 + j) * stride, (2 * p[:, 1] - 0.5 + i) * stride
            w, h = (2 * p[:, 2]) ** 2 * width, (2 * p[:, 3]) ** 2 * height
            expected.append(torch.cat((torch.stack((x, y, w, h), 1), p[:, 4:]), 1))
    assert fold_error(decoded, torch.stack(expected, 1)) < 1e-12


def test_the_head_starts_from_what_is_known() -> None:
    head = Detect([4, 4], [[(3.0, 5.0)], [(11.0, 13.0)]], strides=[8, 16], num_classes=5)
    for layer, stride in zip(head.maps, (8, 16), strict=True):
        bias = dict(layer.named_parameters())["bias"]
        assert bias[4].item() == pytest.approx(math.log(8 / (640 / stride) ** 2))
        assert bias[5:].tolist() == pytest.approx([math.log(0.6 / 4)] * 5)


def test_anchors_can_be_set_and_are_saved() -> None:
    network = yolov5("yolov5n", num_classes=1)
    anchors = torch.rand(3, 3, 2) * 30 + 1
    network.set_anchors(anchors)
    assert torch.equal(network.detect.anchors, anchors)
    assert torch.equal(torch.tensor(network.description.anchors), anchors)
    other = yolov5("yolov5n", num_classes=1)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.detect.anchors, anchors)
    with pytest.raises(ValueError, match="shape"):
        network.set_anchors(anchors[:2])
    with pytest.raises(ValueError, match="positive"):
        network.set_anchors(-anchors)


def test_c3_and_bottleneck_and_sppf_mean_what_they_say() -> None:
    x = torch.randn(2, 6, 9, 7)
    c3 = randomize(C3(6, 8, depth=2), torch.Generator().manual_seed(1), x).eval()
    assert isinstance(c3, C3)
    y = c3.main(x)
    for bottleneck in c3.bottlenecks:
        assert isinstance(bottleneck, Bottleneck)
        y = y + bottleneck.second(bottleneck.first(y))
    assert torch.equal(c3(x), c3.merge(torch.cat((y, c3.bypass(x)), 1)))
    pool = randomize(SPPF(6, 8), torch.Generator().manual_seed(2), x).eval()
    assert isinstance(pool, SPPF)
    narrow = pool.reduce(x)
    wide = [nn.functional.max_pool2d(narrow, k, 1, k // 2) for k in (5, 9, 13)]
    assert torch.equal(pool(x), pool.merge(torch.cat((narrow, *wide), 1)))


def test_the_neck_joins_what_it_should() -> None:
    """Each level of the output depends on every level of the input: the paths down and up are both there."""
    network = small()
    features = [f.requires_grad_() for f in network.backbone(torch.rand(1, 3, 64, 96).double())]
    for output in network.neck(features):
        gradients = torch.autograd.grad(output.square().sum(), features, retain_graph=True)
        assert all(float(gradient.abs().sum()) > 0 for gradient in gradients)


BLOCKS: list[dict[str, Any]] = [
    {},
    {"block": "repvgg"},
    {"block": "repvgg", "bottleneck": "3x3-3x3", "shortcut": "average"},
    {"block": {"kind": "mobileone", "num_branches": 3}, "activation": "relu"},
    {"block": {"default": "plain", "stage3": "repvgg", "neck2": {"kind": "repvgg", "se": 0.25}}},
    {"block": {"kind": "repvgg", "shortcut": None}, "activation": "hardswish"},
    {"block": "qarepvgg", "bottleneck": "3x3-3x3"},
    {
        "block": {"stage1": "acnet", "stage2": "dbb", "stage3": "orepa", "stage4": "repconv"},
        "shortcut": "linear",
    },
    {"backbone": "repvgg_a0", "block": "repvgg"},
]


@pytest.mark.parametrize("options", BLOCKS, ids=str)
def test_folded_networks_compute_the_same(options: dict[str, Any]) -> None:
    network = small(**options)
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        before = network(images)
        maps = network.maps(images)
        assert not network.deployed
        assert network.fuse() is network
        assert network.deployed
        assert fold_error(network(images), before) < 1e-10
        assert all(fold_error(a, b) < 1e-10 for a, b in zip(network.maps(images), maps, strict=True))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_every_part_can_be_folded_by_itself_and_while_iterating() -> None:
    """As YOLO users write it: `for m in model.modules(): m.switch_to_deploy()`."""
    network = small(block="repvgg")
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = network(images)
        network.neck.switch_to_deploy()
        assert fold_error(network(images), before) < 1e-10
        assert not network.deployed
        for module in network.modules():
            if isinstance(module, Conv | RepVGGBlock | C3):
                module.switch_to_deploy()
        assert fold_error(network(images), before) < 1e-10
    assert network.deployed


def test_folding_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval"):
        small().train().fuse()


def test_where_blocks_stand() -> None:
    network = yolov5("yolov5n", block={"stage2": "repvgg", "neck3": "mobileone"}, bottleneck="1x1-3x3")
    places = [
        name.split(".bottlenecks")[0]
        for name, module in network.named_modules()
        if isinstance(module, RepVGGBlock)
    ]
    assert places == ["backbone.stages.1", "backbone.stages.1", "neck.upward.0"]
    wide = yolov5("yolov5n", block={"stage2": "repvgg"}, bottleneck="3x3-3x3")
    assert sum(isinstance(module, RepVGGBlock) for module in wide.modules()) == 4


def test_a_block_of_ones_own_in_c3() -> None:
    c3 = C3(6, 8, block=lambda c_in, c_out: nn.Conv2d(c_in, c_out, 3, padding=1))
    assert c3(torch.rand(1, 6, 5, 5)).shape == (1, 8, 5, 5)


@pytest.mark.parametrize("name", ["mobileone_s0", "repvgg_a0", "mobileone_s4"])
def test_classification_backbones(name: str) -> None:
    with torch.device("meta"):
        network = yolov5("yolov5n", num_classes=2, backbone=name).eval()
        assert network(torch.rand(1, 3, 64, 64)).shape == (1, 252, 7)


def test_a_backbone_without_the_strides_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone 'repvgg_a0', for maps of strides \(8, 16, 32, 64\)"):
        yolov5("yolov5n6", backbone="repvgg_a0")
    with pytest.raises(ValueError, match=r"backbone 'resnet_900'.*no network named"):
        yolov5("yolov5n", backbone="resnet_900")


def test_renaming_classes() -> None:
    network = yolov5("yolov5n", num_classes=2)
    network.rename(["cat", "dog"])
    assert network.names == ["cat", "dog"]
    assert network.description.names == ("cat", "dog")
    with pytest.raises(ValueError, match="1 names for 2 classes"):
        network.rename(["cat"])
