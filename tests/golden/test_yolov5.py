"""The trained YOLOv5n: imported, folded and exported, it finds what its original code found."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import unbranch
from tests.detect.photographs import Reference
from tests.support import fold_error
from unbranch.detect import Detector, Limits, Plan, export, import_original
from unbranch.detect.letterbox import fill, network_input, place
from unbranch.detect.nms import suppress
from unbranch.detect.sources import read_picture
from unbranch.models.yolov5 import YOLOv5


def assert_agrees(detector: Detector, pictures: list[Reference]) -> None:
    """Within a pixel and 0.005 of score, nothing missing and nothing more, in the same order."""
    for reference in pictures:
        pixels = read_picture(reference.path)
        [found] = detector.boxes([pixels])
        assert found.shape == reference.boxes.shape, reference.path.name
        assert float((found[:, :4] - reference.boxes[:, :4]).abs().max()) <= 1.0
        assert float((found[:, 4] - reference.boxes[:, 4]).abs().max()) <= 0.005
        assert torch.equal(found[:, 5], reference.boxes[:, 5])


def test_the_raw_output_is_the_originals_before_and_after_folding(network: YOLOv5, shared_data: Path) -> None:
    stored = load_file(shared_data / "yolov5n" / "reference_io.safetensors")
    with torch.no_grad():
        assert fold_error(network(stored["input"]), stored["output"]) < 1e-5
        again = import_original(shared_data / "yolov5n" / "yolov5n.pt").fuse()
        assert fold_error(again(stored["input"]), stored["output"]) < 1e-5


def test_the_same_state_dict_gives_the_same_network(network: YOLOv5, shared_data: Path) -> None:
    other = import_original(shared_data / "yolov5n" / "yolov5n.safetensors")
    assert other.description == network.description
    mine, theirs = network.state_dict(), other.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_what_the_file_says_of_itself_is_kept(network: YOLOv5) -> None:
    assert network.description.network == "yolov5n"
    assert (len(network.names), network.names[0], network.names[79]) == (80, "person", "toothbrush")
    assert network.detect.anchors[2].tolist() == [[116, 90], [156, 198], [373, 326]]
    assert network.detect.strides.tolist() == [8, 16, 32]
    assert not network.deployed


def test_boxes_before_folding(network: YOLOv5, pictures: list[Reference]) -> None:
    network.eval()
    detector = Detector(network)
    detector.engine.run = lambda images: network(torch.from_numpy(images)).detach()
    for reference in pictures:
        box = detector.place(read_picture(reference.path))
        assert (1, 3, box.rows, box.columns) == reference.input_shape
    assert_agrees(detector, pictures)


def test_boxes_after_folding(network: YOLOv5, pictures: list[Reference]) -> None:
    detector = Detector(network)
    assert len(detector.notes) == 1
    assert "folded" in detector.notes[0]
    assert not network.deployed, "the caller's own network must not change"
    assert_agrees(detector, pictures)


@pytest.mark.slow
def test_branches_and_the_folded_network_find_the_same_on_all_test_pictures(
    network: YOLOv5, shared_data: Path
) -> None:
    """Trained weights with RepVGG branches in every C3, on 72 photographs that they know nothing of: down to a
    score of 0.02 there is plenty to disagree about."""
    branched = copy.deepcopy(network).eval()
    unbranch.expand_(branched, "repvgg", where="*.bottlenecks.*")
    folded = copy.deepcopy(branched).fuse()
    names = (shared_data / "bccd" / "BCCD" / "ImageSets" / "Main" / "test.txt").read_text().split()
    boxes = 0
    for name in names:
        pixels = read_picture(shared_data / "bccd" / "BCCD" / "JPEGImages" / f"{name}.jpg")
        box = place(*pixels.shape[:2], (320, 320), 32)
        images = torch.from_numpy(network_input(fill(pixels, box))[None])
        with torch.no_grad():
            found, wanted = (suppress(net(images), Limits(confidence=0.02))[0] for net in (folded, branched))
        assert found.shape == wanted.shape, name
        assert torch.allclose(found, wanted, rtol=0, atol=0.01), name
        boxes += len(wanted)
    assert len(names) == 72
    assert boxes > 200


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("nms", [False, True], ids=["raw", "nms"])
def test_boxes_of_dynamic_exports(
    network: YOLOv5, pictures: list[Reference], tmp_path: Path, suffix: str, nms: bool
) -> None:
    plan = Plan(dynamic=True, nms=Limits() if nms else None)
    written = export(network, tmp_path / f"yolov5n{suffix}", plan, [r.path for r in pictures])
    assert written.agreement
    assert written.agreement.boxes > 8
    assert len(written.agreement.shapes) == 3
    detector = Detector(written.path)
    assert list(detector.names) == network.names
    assert detector.rectangular
    assert_agrees(detector, pictures)
    assert [len(boxes) for boxes in detector.boxes([read_picture(r.path) for r in pictures])] == [5, 3]


@pytest.mark.slow
def test_a_static_export_agrees_with_torch_at_its_size(
    network: YOLOv5, pictures: list[Reference], tmp_path: Path
) -> None:
    written = export(network, tmp_path / "yolov5n.onnx", Plan(), [r.path for r in pictures])
    static, square = Detector(written.path), Detector(network, rectangular=False)
    assert static.engine.signature.size == (640, 640)
    assert not static.rectangular
    for reference in pictures:
        pixels = read_picture(reference.path)
        [ours], [theirs] = square.boxes([pixels]), static.boxes([pixels])
        assert ours.shape == theirs.shape
        assert float((ours[:, :4] - theirs[:, :4]).abs().max()) < 0.01
        assert torch.equal(ours[:, 5], theirs[:, 5])
