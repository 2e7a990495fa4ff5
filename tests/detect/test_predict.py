"""The detector: the same boxes whatever the batch, the source and the number of workers; times, limits, bad
input.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image
from torch import Tensor

from tests.detect.photographs import finder, picture, write_video
from unbranch.detect import Detector, InputError, Limits, detect, save
from unbranch.detect.engines import TorchEngine
from unbranch.detect.nms import suppress
from unbranch.detect.predict import STEPS, Result
from unbranch.detect.running import class_indices, only_classes
from unbranch.detect.sources import VideoFrame
from unbranch.models.yolov5 import YOLOv5

SHAPES = [(48, 64), (64, 48), (48, 64), (33, 90), (128, 128), (48, 64)]
LIMITS = Limits(confidence=0.2, iou=0.5, most=20)


@pytest.fixture(scope="module")
def network() -> YOLOv5:
    return finder()


@pytest.fixture
def detector(network: YOLOv5) -> Detector:
    return Detector(network, 128, LIMITS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, (height, width) in enumerate(SHAPES):
        assert cv2.imwrite(str(folder / f"{index}.png"), picture(height, width, seed=index))
    return folder


def same(a: Sequence[sv.Detections], b: Sequence[sv.Detections]) -> None:
    for one, other in zip(a, b, strict=True):
        assert np.allclose(one.xyxy, other.xyxy, atol=1e-2)
        assert np.array_equal(np.asarray(one.class_id), np.asarray(other.class_id))


def test_detections_are_supervisions(detector: Detector) -> None:
    found = detector(picture())
    assert isinstance(found, sv.Detections)
    assert len(found) > 0
    assert found.confidence is not None
    assert found.class_id is not None
    assert found.confidence.min() > LIMITS.confidence
    assert list(found.data["class_name"]) == ["abc"[i] for i in found.class_id]
    assert found.xyxy.min() >= 0
    assert (found.xyxy.max(axis=0) <= [64, 48, 64, 48]).all()
    sv.BoxAnnotator().annotate(picture(), found)


def test_boxes_are_the_networks_own(detector: Detector, network: YOLOv5) -> None:
    """By hand: blue green red to red green blue, / 255, no resize since 128 pixels fit exactly."""
    pixels = picture(128, 128, seed=4)
    images = torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        [expected] = suppress(network(images), LIMITS)
    expected[:, :4] = expected[:, :4].clamp(0, 128)
    [found] = detector.boxes([pixels])
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-2)


def test_every_way_in_gives_the_same(detector: Detector, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    alone = [detector(path) for path in paths]
    assert all(isinstance(found, sv.Detections) for found in alone)
    single = [found for found in alone if isinstance(found, sv.Detections)]
    arrays = [np.asarray(cv2.imread(str(path))) for path in paths]
    images = [Image.open(path) for path in paths]
    for pictures in (paths, [str(path) for path in paths], arrays, images):
        found = detector(pictures)
        assert isinstance(found, list)
        same(found, single)
    assert detector([]) == []


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (1, 3), (4, 2), (16, 1)])
def test_streams_keep_the_order(detector: Detector, folder: Path, batch: int, workers: int) -> None:
    results = list(detector.stream(folder, batch, workers))
    assert [result.item.name for result in results] == [f"{index}.png" for index in range(len(SHAPES))]
    expected = detector(sorted(folder.iterdir()))
    assert isinstance(expected, list)
    same([result.detections for result in results], expected)
    assert all(set(result.seconds) == set(STEPS) for result in results)
    assert all(
        result.pixels is not None and result.pixels.shape[:2] == shape
        for result, shape in zip(results, SHAPES, strict=True)
    )


def test_a_bad_picture_stops_nothing(detector: Detector, folder: Path) -> None:
    (folder / "2.png").write_bytes(b"")
    results = list(detector.stream(folder, batch=4))
    assert [result.problem is None for result in results] == [True, True, False, True, True, True]
    assert str(results[2].problem).endswith("2.png: the file is empty")
    assert len(results[2].detections) == 0


def test_videos_and_pictures_in_one_stream(detector: Detector, folder: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "film.avi", 30)
    content = (tmp_path / "film.avi").read_bytes()
    (tmp_path / "film.avi").write_bytes(content[: len(content) // 2])
    results = list(detector.stream([tmp_path / "film.avi", folder / "0.png"], batch=4))
    seen = [result.item.index for result in results if isinstance(result.item, VideoFrame)]
    assert seen == list(range(len(seen)))
    assert 5 < len(seen) < 30
    assert "ends early" in str(results[len(seen)].problem)
    assert results[-1].item.name == "0.png"
    assert results[-1].problem is None


def test_leaving_a_stream_early_ends_its_threads(detector: Detector, folder: Path) -> None:
    stream = detector.stream(folder)
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_rectangular_and_square(detector: Detector, network: YOLOv5) -> None:
    seen: list[tuple[int, ...]] = []
    inner = detector.engine.run

    def spy(images: np.ndarray) -> Tensor:
        seen.append(images.shape)
        return inner(images)

    detector.engine.run = spy
    detector(picture(48, 128))
    detector.rectangular = False
    detector(picture(48, 128))
    assert seen == [(1, 3, 64, 128), (1, 3, 128, 128)]


def test_pictures_of_one_shape_run_together(detector: Detector) -> None:
    seen: list[tuple[int, ...]] = []
    inner = detector.engine.run
    detector.engine.run = lambda images: (seen.append(images.shape), inner(images))[1]
    detector([picture(height, width) for height, width in SHAPES])
    assert sorted(shape[0] for shape in seen) == [1, 1, 1, 3]


def test_only_some_classes(network: YOLOv5) -> None:
    detector = Detector(network, 128, LIMITS)
    only_classes(detector, ["b", 2])
    found = detector(picture())
    assert isinstance(found, sv.Detections)
    assert found.class_id is not None
    assert set(found.class_id.tolist()) <= {1, 2}
    assert class_indices(["a", "b"], ["b", "0"]) == (1, 0)
    with pytest.raises(InputError, match="class 'dog' is unknown"):
        only_classes(detector, ["dog"])
    with pytest.raises(InputError, match="class 7"):
        Detector(network, 128, Limits(classes=(7,)))


def test_training_form_is_folded_on_a_copy_and_said(network: YOLOv5, tmp_path: Path) -> None:
    save(network, tmp_path / "train.safetensors")
    from_file, from_memory = Detector(tmp_path / "train.safetensors", 128), Detector(network, 128)
    for made in (from_file, from_memory):
        [note] = made.notes
        assert "in training form, folded on loading" in note
    assert not network.deployed
    folded = Detector(network, 128).engine
    assert isinstance(folded, TorchEngine)
    assert folded.model.deployed
    save(folded.model, tmp_path / "deploy.safetensors")
    assert Detector(tmp_path / "deploy.safetensors", 128).notes == ()


def test_bad_pictures_are_one_line(detector: Detector, tmp_path: Path) -> None:
    bad: list[tuple[object, str]] = [
        (np.zeros((4, 4), np.uint8), r"uint8 array of shape \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "float32 array"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
        (tmp_path / "absent.png", "cannot be read"),
    ]
    for picture_, message in bad:
        with pytest.raises(InputError, match=message):
            detector(picture_)  # pyright: ignore[reportArgumentType]


def test_bad_settings_are_one_line(network: YOLOv5, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"x")
    (tmp_path / "a.txt").write_bytes(b"x")
    (tmp_path / "a.onnx").write_bytes(b"x")
    (tmp_path / "a.xml").write_text("x")
    (tmp_path / "a.safetensors").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    bad = [
        ("absent.onnx", "no such file"),
        ("a.pt", "unbranch import"),
        ("a.txt", "unknown kind"),
        ("a.onnx", "ONNX Runtime cannot read it"),
        ("a.xml", "OpenVINO cannot read it"),
        ("a.safetensors", "not a whole safetensors file"),
        ("folder", "0 .xml files"),
    ]
    for name, message in bad:
        with pytest.raises(InputError, match=message) as caught:
            Detector(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="multiple of 32, such as 128"):
        Detector(network, 130)


def test_a_run_is_summed_up_and_kept(network: YOLOv5, folder: Path, tmp_path: Path) -> None:
    (folder / "1.png").write_bytes(b"")
    detector = Detector(network, 128, LIMITS)
    seen: list[Result] = []
    summary = detect(detector, folder, tmp_path / "out", ("pictures", "csv"), each=seen.append)
    assert summary.pictures == len(SHAPES) - 1
    assert len(seen) == len(SHAPES)
    assert len(summary.problems) == 1
    assert sum(summary.objects.values()) == sum(len(result.detections) for result in seen) > 0
    assert "pictures a second" in summary.times
    kept = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert kept == ["0.png", "2.png", "3.png", "4.png", "5.png", "detections.csv"]
