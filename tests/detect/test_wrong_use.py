"""The verbs on a full disk, in folders that may not be written, on broken pictures, labels and videos."""

from pathlib import Path
from typing import Any

import pytest

from tests.detect.data_sets import squares
from tests.detect.lives import TINY, Outcome, verb
from tests.detect.photographs import finder, write_video
from unbranch.detect.checkpoint import save
from unbranch.detect.sources import read_picture

TRAIN = [
    "--epochs", "1", "--size", "64", "--batch", "4", "--workers", "0", "--accelerator", "cpu", "--precision", "32",
    *(word for name, value in TINY.items() for word in ("--network", f"{name}={value}")),
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return squares(tmp_path / "data")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save(finder(names=["red", "green"]), file)
    return file


def words(of: str, weights: Path, data: Path, out: Path) -> list[Any]:
    """A verb that writes into `out`."""
    pictures = data.parent / "images" / "val"
    return {
        "train": ["train", "--data", data, "--out", out / "run", *TRAIN],
        "val": ["val", weights, "--data", data, "--size", 64, "--out", out],
        "detect": ["detect", weights, pictures, "--size", 64, "--out", out],
        "csv": ["detect", weights, pictures, "--size", 64, "--no-pictures", "--csv", "--confidence", 0.0001, "--out", out],
        "onnx": ["export", weights, "--to", "onnx", "--size", 64, "-o", out / "net"],
        "openvino": ["export", weights, "--to", "openvino", "--size", 64, "-o", out / "net"],
        "pt2": ["export", weights, "--to", "pt2", "--size", 64, "-o", out / "net"],
    }[of]  # fmt: skip


def assert_one_line(outcome: Outcome, *texts: str) -> None:
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for text in texts:
        assert text in outcome.err


EVERY_DAY = ("val", "detect", "csv")
VERBS = [pytest.param(of, marks=[pytest.mark.slow] * (of not in EVERY_DAY)) for of in
         ("train", "val", "detect", "csv", "onnx", "openvino", "pt2")]  # fmt: skip


@pytest.mark.parametrize("of", VERBS)
def test_a_full_disk(of: str, weights: Path, data: Path, tmp_path: Path) -> None:
    """A limit on the length of files stands in for it. No half file is left."""
    out = tmp_path / "out"
    out.mkdir()
    assert_one_line(verb(*words(of, weights, data, out), most_bytes=2000), "cannot be written", str(out))
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("of", VERBS)
def test_a_folder_that_may_not_be_written(of: str, weights: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    assert_one_line(verb(*words(of, weights, data, out)), "cannot be written: Permission denied", str(out))
    assert list(out.iterdir()) == []


def test_a_picture_that_may_not_be_read(weights: Path, data: Path, tmp_path: Path) -> None:
    folder = data.parent / "images" / "val"
    (folder / "001.png").chmod(0)
    outcome = verb("detect", weights, folder, "--size", 64, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "001.png: cannot be read: Permission denied" in outcome.err
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_broken_pictures_empty_labels_and_unknown_classes_are_named_and_trained_without(
    data: Path, tmp_path: Path
) -> None:
    root = data.parent
    (root / "images" / "train" / "000.png").write_bytes(b"no picture")
    (root / "labels" / "train" / "001.txt").write_text("")
    (root / "labels" / "train" / "002.txt").write_text("7 0.5 0.5 0.25 0.25\n0 0.5 0.5 0.25 0.25\n")
    outcome = verb(*words("train", Path(), data, tmp_path))
    assert outcome.code == 0, outcome.err
    assert "train: 11 pictures" in outcome.out
    assert "1 x picture cannot be decoded, skipped: " in outcome.out
    assert "001.txt" not in outcome.out, "an empty label is background, and no fault"
    assert "002.txt line 1 (class 7, the data set has 2)" in outcome.out
    assert (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.parametrize(("line", "says"), [("", "the labels are empty"), ("9 0.5 0.5 0.2 0.2", "class 9")])
def test_a_data_set_without_a_sound_box(line: str, says: str, data: Path, tmp_path: Path) -> None:
    for label in data.parent.rglob("*.txt"):
        label.write_text(line)
    assert_one_line(verb(*words("train", Path(), data, tmp_path)), "train: no sound box in 12 pictures", says)
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_a_video_that_ends_early_keeps_its_frames_and_what_comes_after(weights: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_video(source / "a.avi", 40)
    content = (source / "a.avi").read_bytes()
    (source / "a.avi").write_bytes(content[: len(content) // 2])
    write_video(source / "b.avi", 3)
    outcome = verb("detect", weights, source, "--size", 64, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "a.avi: the video ends early, after " in outcome.err
    assert "1 could not be read to the end" in outcome.err
    assert "b.avi, frame 2: " in outcome.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.mp4", "b.mp4"}


@pytest.mark.slow
def test_yolov7_goes_through_the_verbs(data: Path, tmp_path: Path) -> None:
    """Its heads are implicit and its branches its own: trained, measured, looked through and exported alike."""
    run, plain = tmp_path / "run", TRAIN[: TRAIN.index("--network")]
    trained = verb("train", "--data", data, "--model", "yolov7-tiny", "--out", run, *plain)
    assert trained.code == 0, trained.err
    best, pictures = run / "best.safetensors", data.parent / "images" / "val"
    measured = verb("val", best, "--data", data, "--size", 64)
    assert measured.code == 0, measured.err
    assert "in training form, folded on loading" in measured.out
    for to, suffix in (("onnx", ".onnx"), ("openvino", ".xml"), ("pt2", ".pt2")):
        exported = verb("export", best, "--to", to, "--size", 64, "--pictures", pictures)
        assert exported.code == 0, exported.err
        assert "0 wrong" in exported.out
        if to != "pt2":
            file = best.with_suffix(suffix)
            assert "mAP50" in verb("val", file, "--data", data).out
            found = verb("detect", file, pictures, "--confidence", 0.01, "--out", tmp_path / to, "--txt")
            assert found.code == 0, found.err
            assert read_picture(tmp_path / to / "000.png").shape == (96, 96, 3)
