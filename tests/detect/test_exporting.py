"""Exports agree with torch, say what they are, and are not written where they do not agree."""

import ast
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.detect.photographs import finder, picture
from tests.support import fold_error
from unbranch.detect import Detector, InputError, Limits, Plan, detect, export, exporting, save
from unbranch.detect.agreement import Agreement, agree, broken_rules
from unbranch.detect.engines import Signature, open_engine, read_signature
from unbranch.detect.letterbox import fill, network_input
from unbranch.detect.nms import suppress, suppress_scores
from unbranch.detect.sources import find, read_picture
from unbranch.models.yolov5 import YOLOv5

NAMES = ["cat", 'dog "d"', "it's"]
LIMITS = Limits(confidence=0.4, iou=0.5)


@pytest.fixture(scope="module")
def network() -> YOLOv5:
    return finder(names=NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, (height, width) in enumerate([(48, 64), (128, 96)]):
        assert cv2.imwrite(str(folder / f"{index}.png"), picture(height, width, seed=index))
    return folder


def written(network: YOLOv5, target: Path, folder: Path, **plan: Any) -> Path:
    made = export(network, target, Plan(size=128, **plan), folder)
    assert made.agreement
    assert made.path == target
    assert made.notes == (
        "the weights were in training form; their branches and norms were folded for this file",
    )
    assert not network.deployed
    return target


@pytest.fixture(scope="module")
def dynamic(network: YOLOv5, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(network, tmp_path_factory.mktemp("dynamic") / "a.onnx", folder, dynamic=True)


def assert_same_boxes(network: YOLOv5, path: Path, folder: Path, limits: Limits = LIMITS) -> None:
    """The file's boxes are torch's predictions, suppressed, and a detector on the file gives them in picture
    pixels.
    """
    detector = Detector(path, 128, limits)
    for item in find(folder):
        pixels = read_picture(item.path)
        box = detector.place(pixels)
        images = network_input(fill(pixels, box))[None].repeat(detector.engine.signature.batch or 1, axis=0)
        with torch.no_grad():
            predictions = network(torch.from_numpy(images))[0]
        output = detector.engine.run(images)
        if detector.engine.signature.output == "detections":
            rows = output[(output[:, 0] == 0) & (output[:, 5] > limits.confidence), 1:]
        else:
            raw = detector.engine.signature.output == "predictions"
            rows = (suppress(output, limits) if raw else suppress_scores(output, limits))[0]
        assert 0 < len(rows) < limits.most
        assert broken_rules(predictions, rows, limits) == 0
        [found] = detector.boxes([pixels])
        expected = torch.cat((box.to_picture(rows[:, :4]), rows[:, 4:]), dim=1)
        assert fold_error(found, expected) < 1e-5


def test_a_dynamic_onnx_file(network: YOLOv5, dynamic: Path, folder: Path) -> None:
    assert_same_boxes(network, dynamic, folder)
    model = onnx.load(dynamic)
    onnx.checker.check_model(model, full_check=True)
    shape = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert (model.graph.input[0].name, shape) == ("images", ["batch", 3, "height", "width"])
    shape = [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    assert (model.graph.output[0].name, shape) == ("predictions", ["batch", "boxes", 8])
    operators = {node.op_type for node in model.graph.node}
    assert "BatchNormalization" not in operators
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 54, "51 layers of a YOLOv5 of these depths and the three maps of its head"


def test_metadata(dynamic: Path) -> None:
    about = {entry.key: entry.value for entry in onnx.load(dynamic).metadata_props}
    assert ast.literal_eval(about["names"]) == dict(enumerate(NAMES))
    assert (about["stride"], about["task"], about["output"]) == ("32", "detect", "predictions")
    assert Detector(dynamic, 128).names == tuple(NAMES)


def test_streams_of_an_exported_file(dynamic: Path, folder: Path, tmp_path: Path) -> None:
    detector = Detector(dynamic, 128, LIMITS)
    spread = detector.engine.spread(2)
    assert spread is not detector.engine
    images = np.random.default_rng(0).random((1, 3, 64, 96), np.float32)
    assert torch.allclose(spread.run(images), detector.engine.run(images), atol=1e-4)
    summary = detect(detector, folder, tmp_path, (), workers=2)
    assert summary.pictures == 2
    assert sum(summary.objects.values()) > 0


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_suppression_inside(network: YOLOv5, folder: Path, tmp_path: Path, suffix: str) -> None:
    path = written(network, tmp_path / f"a{suffix}", folder, dynamic=True, nms=LIMITS)
    assert_same_boxes(network, path, folder)
    detector = Detector(path, 128, LIMITS)
    assert detector.engine.signature.output == "detections"
    nothing = detector.engine.run(np.zeros((1, 3, 64, 64), np.float32))
    assert nothing.shape[1] == 7
    assert_same_boxes(network, path, folder, Limits(confidence=0.45, iou=0.5))


def test_a_fixed_batch_and_the_layout_of_later_yolos(network: YOLOv5, folder: Path, tmp_path: Path) -> None:
    path = written(network, tmp_path / "a.onnx", folder, batch=3, layout="scores")
    engine = open_engine(path)
    assert engine.signature == Signature(tuple(NAMES), 32, (128, 128), 3, "scores")
    assert engine.run(np.zeros((3, 3, 128, 128), np.float32)).shape == (3, 7, 1008)
    assert_same_boxes(network, path, folder)


def test_openvino(network: YOLOv5, folder: Path, tmp_path: Path) -> None:
    path = written(network, tmp_path / "a.xml", folder, dynamic=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.bin", "a.xml"]
    assert_same_boxes(network, path, folder)
    assert_same_boxes(network, tmp_path, folder)
    assert Detector(path, 128).names == tuple(NAMES)
    spread = open_engine(path).spread(2)
    assert spread.run(np.zeros((1, 3, 64, 64), np.float32)).shape == (1, 252, 8)


def test_pt2(network: YOLOv5, folder: Path, tmp_path: Path) -> None:
    path = written(network, tmp_path / "a.pt2", folder, dynamic=True)
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    assert ast.literal_eval(json.loads(extra["metadata.json"])["names"])[0] == "cat"
    images = torch.rand(3, 3, 96, 64)
    with torch.no_grad():
        assert fold_error(program.module()(images), network(images)) < 1e-4


def test_a_file_that_disagrees_is_not_written(
    network: YOLOv5, dynamic: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bias of the file is changed between its writing and its check."""

    def bend(suffix: str, _program: object, _network: object, _plan: object, part: Path) -> Any:
        model = onnx.load(dynamic)
        bias = next(i for i in model.graph.initializer if i.name.endswith("maps.0.bias"))
        values = onnx.numpy_helper.to_array(bias).copy()
        values[4] += 0.01
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        onnx.save(model, part)
        return open_engine(part).run

    monkeypatch.setattr(exporting, "_write", bend)
    (tmp_path / "a.onnx").write_text("the old file")
    with pytest.raises(
        InputError, match=r"a\.onnx: not written, since it does not agree with torch: outputs within"
    ):
        export(network, tmp_path / "a.onnx", Plan(size=128, dynamic=True), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert (tmp_path / "a.onnx").read_text() == "the old file"


def test_agreement_sees_boxes_that_differ(network: YOLOv5) -> None:
    images = [torch.rand(1, 3, 64, 64).numpy()]

    def run(images: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return network(torch.from_numpy(images))

    fine = agree(run, network, images, "predictions", LIMITS)
    assert fine
    assert fine.error == 0
    assert fine.boxes > 0
    moved = agree(lambda x: run(x) + torch.tensor([1.5, *[0.0] * 7]), network, images, "predictions", LIMITS)
    assert not moved
    assert moved.wrong > 0
    assert not Agreement(float("inf"), 1, 0, ())
    assert not Agreement(None, 1, 1, ())


def test_broken_rules_are_counted() -> None:
    """Two predictions that overlap, one apart, one below the threshold, one that could be either class."""
    rows = [
        [10.0, 10.0, 8.0, 8.0, 1.0, 0.9, 0.0],
        [11.0, 10.0, 8.0, 8.0, 1.0, 0.7, 0.0],
        [40.0, 40.0, 8.0, 8.0, 1.0, 0.0, 0.6],
        [60.0, 60.0, 8.0, 8.0, 1.0, 0.253, 0.0],
        [80.0, 80.0, 8.0, 8.0, 1.0, 0.5, 0.499],
    ]
    predictions = torch.tensor(rows)
    [stands] = suppress(predictions[None])
    assert len(stands) == 4
    assert broken_rules(predictions, stands) == 0
    other_class = stands.clone()
    other_class[2, 4:] = torch.tensor([0.499, 1.0])
    assert broken_rules(predictions, other_class) == 0
    without_faint = stands[:3]
    assert broken_rules(predictions, without_faint) == 0
    assert broken_rules(predictions, stands[1:]) == 2, (
        "the best box is lost, and nothing suppresses its neighbour"
    )
    weaker = stands.clone()
    weaker[0] = torch.tensor([7.0, 6.0, 15.0, 14.0, 0.7, 0.0])
    assert broken_rules(predictions, weaker) == 1, "the weaker of two stands, and the better is lost"
    both = torch.cat((stands, weaker[:1]))
    assert broken_rules(predictions, both) == 1, "two of a class overlap"
    for column, by in ((0, 2.0), (4, 0.02), (5, 1.0)):
        moved = stands.clone()
        moved[1, column] += by * (-1 if column == 5 else 1)
        assert broken_rules(predictions, moved) >= 1
    assert broken_rules(predictions, torch.empty(0, 6)) == 4
    assert broken_rules(torch.empty(0, 7), torch.empty(0, 6)) == 0


@pytest.mark.parametrize(
    ("target", "plan", "message"),
    [
        ("a.engine", {}, r"exports are named \.onnx, \.xml, \.pt2"),
        ("a.pt2", {"nms": Limits()}, "suppression goes into .onnx and .xml only"),
        ("a.onnx", {"size": 100}, "multiples of the stride, 32"),
        ("a.onnx", {"size": (64, 0)}, "both must be positive"),
        ("a.onnx", {"batch": 0}, "both must be positive"),
        ("a.onnx", {"nms": Limits(), "layout": "scores"}, "goes with the layout 'predictions' only"),
        ("a.onnx", {"nms": Limits(multi_label=True)}, "no other options"),
    ],
)
def test_plans_that_cannot_be(
    network: YOLOv5, tmp_path: Path, target: str, plan: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export(network, tmp_path / target, Plan(**plan))


def test_weights_and_pictures_that_cannot_be_used(network: YOLOv5, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        export(tmp_path / "absent.safetensors", tmp_path / "a.onnx")
    save(network, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no such file or folder"):
        export(tmp_path / "a.safetensors", tmp_path / "a.onnx", Plan(size=64), tmp_path / "absent")


FOUND = ["batch", "boxes", 8]
SIGNATURES: list[tuple[dict[str, str], list[Any], list[Any], Signature]] = [
    (
        {},
        [1, 3, 64, 64],
        [1, 252, 8],
        Signature(("class0", "class1", "class2"), 32, (64, 64), 1, "predictions"),
    ),
    (
        {"names": "{1: 'b', 0: 'a'}", "stride": "64"},
        ["n", 3, "h", "w"],
        ["n", 6, "k"],
        Signature(("a", "b"), 64, None, None, "scores"),
    ),
    (
        {"names": '["a"]'},
        ["n", 3, 64, 64],
        ["n", "k", 6],
        Signature(("a",), 32, (64, 64), None, "predictions"),
    ),
]


@pytest.mark.parametrize(("about", "entry", "result", "expected"), SIGNATURES)
def test_signatures_of_other_peoples_files(
    about: dict[str, str], entry: list[Any], result: list[Any], expected: Signature
) -> None:
    assert read_signature(Path("a.onnx"), about, entry, result) == expected


@pytest.mark.parametrize(
    ("about", "entry", "result", "message"),
    [
        ({}, [1, 3], FOUND, "a detector takes"),
        ({}, [1, 1, 64, 64], FOUND, "a detector takes"),
        ({"names": "['a']"}, [1, 3, 64, 64], FOUND, "for 1 names; neither"),
        ({}, [1, 3, 64, 64], [1, 1000], "neither"),
        ({"names": "__import__('os')"}, [1, 3, 64, 64], FOUND, "names that cannot be read"),
        ({"names": "(1, 2, 3)"}, [1, 3, 64, 64], FOUND, "no list of texts"),
        ({"stride": "0"}, [1, 3, 64, 64], FOUND, "stride '0'"),
        ({"output": "masks"}, [1, 3, 64, 64], FOUND, "output 'masks'"),
    ],
)
def test_files_that_are_no_detectors(
    about: dict[str, str], entry: list[Any], result: list[Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_signature(Path("a.onnx"), about, entry, result)
    assert str(caught.value).startswith("a.onnx: ")


def test_onnx_runtime_takes_the_file_without_a_word(dynamic: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnxruntime.InferenceSession(str(dynamic), providers=["CPUExecutionProvider"])
    assert capfd.readouterr() == ("", "")
