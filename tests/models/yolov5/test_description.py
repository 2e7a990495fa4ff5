"""Descriptions are plain data: checked, never evaluated, and they come back as they went."""

import json
from typing import Any

import pytest
import yaml

from unbranch.models.yolov5 import Description, describe, yolov5

GOOD: list[dict[str, Any]] = [
    {},
    {"network": "yolov5x6", "names": ["a", "b"]},
    {"num_classes": 3, "block": "repvgg", "shortcut": "linear", "bottleneck": "3x3-3x3"},
    {"block": {"default": "mobileone", "stage1": "plain", "neck4": {"kind": "repvgg", "num_branches": 2}}},
    {"names": {0: "cat", 1: "dog"}, "anchors": [[1, 2, 3, 4], [5, 6, 7, 8], [9.5, 10, 11, 12]]},
    {"backbone": "mobileone_s0", "activation": "relu", "channels": [8, 16, 24, 32, 40], "neck_depth": 2},
]


@pytest.mark.parametrize("plain", GOOD, ids=str)
def test_a_description_survives_json_and_yaml(plain: dict[str, Any]) -> None:
    description = Description.from_dict(plain)
    stored = description.to_dict()
    assert Description.from_dict(json.loads(json.dumps(stored))) == description
    assert Description.from_dict(yaml.safe_load(yaml.safe_dump(stored))) == description


def test_equal_descriptions_build_equal_networks() -> None:
    description = describe("yolov5n", num_classes=2, block="repvgg")
    a, b = (yolov5(Description.from_dict(description.to_dict())).state_dict() for _ in range(2))
    assert {key: value.shape for key, value in a.items()} == {key: value.shape for key, value in b.items()}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"netwrok": "yolov5n"}, "unknown key netwrok"),
    ({"network": "yolov5z"}, "network: 'yolov5z'"),
    ({"network": "resnet"}, "network: 'resnet'"),
    ({"num_classes": 0}, "num_classes: 0"),
    ({"num_classes": "3"}, "num_classes: '3'"),
    ({"num_classes": True}, "num_classes: True"),
    ({"names": "cat"}, "names: 'cat'"),
    ({"names": ["cat", ""]}, "empty name"),
    ({"names": []}, "at least one class"),
    ({"names": {0: "a", 2: "b"}}, "are not 0 to 1"),
    ({"names": ["a"], "num_classes": 2}, "num_classes: 2, but 1 names"),
    ({"anchors": [[1, 2], [3, 4]]}, "2 levels"),
    ({"anchors": [[1, 2, 3], [3, 4], [5, 6]]}, "width without a height"),
    ({"anchors": [[1, 2], [3, 4], [5, -6]]}, "all positive"),
    ({"anchors": [[1, 2], [3, 4], [5, 6, 7, 8]]}, "same number"),
    ({"anchors": [["1", 2], [3, 4], [5, 6]]}, "anchors: "),
    ({"activation": "sillu"}, "activation: 'sillu'"),
    ({"activation": ["silu"]}, "activation: "),
    ({"activation": "nn.SiLU()"}, "activation: 'nn.SiLU"),
    ({"bottleneck": "5x5"}, "bottleneck: '5x5'"),
    ({"block": "repvgg2"}, "block of stage1: 'repvgg2'"),
    ({"block": 3}, "block: 3"),
    ({"block": {"kind": ["repvgg"]}}, "is no kind"),
    ({"block": {"stage1": 3}}, "block: 3"),
    ({"block": {"stage9": "repvgg"}}, "no stage stage9"),
    ({"block": {"kind": "repvgg", "branches": 2}}, "block of stage1: repvgg has no option 'branches'"),
    ({"block": {"kind": "repvgg", "norm": 1}}, "has no option 'norm'"),
    ({"block": {"kind": "plain", "se": 0.5}}, "plain has no option 'se'"),
    ({"block": {"kind": "repvgg", "num_branches": 0}}, "num_branches must be at least 1"),
    ({"block": {"kind": "repvgg", "shortcut": "identiy"}}, "block of stage1"),
    ({"block": {"neck1": {"kind": "mobileone", "num_branches": [1]}}}, "block of neck1"),
    ({"channels": [8, 16]}, "channels: (8, 16)"),
    ({"channels": [8, 16, 24, 32, 0]}, "channels: "),
    ({"depths": [1, 2.5, 3, 1]}, "depths: "),
    ({"neck_depth": 0}, "neck_depth: 0"),
    ({"backbone": 5}, "backbone: 5"),
]


@pytest.mark.parametrize(("plain", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_descriptions_are_one_line_that_names_the_value(plain: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Description.from_dict(plain)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shortcut_goes_to_blocks_that_name_none() -> None:
    block = {"default": "repvgg", "stage1": "plain", "stage2": {"kind": "repvgg", "shortcut": None}}
    plain = describe("yolov5n", block=block, shortcut="select").to_dict()["block"]
    assert plain["stage1"] == "plain"
    assert plain["stage2"] == {"kind": "repvgg", "shortcut": None}
    assert plain["neck1"] == {"kind": "repvgg", "shortcut": "select"}


def test_options_beside_a_description_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes"):
        yolov5(describe("yolov5n"), num_classes=3)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown option nc"):
        yolov5("yolov5n", nc=3)  # pyright: ignore[reportCallIssue]
