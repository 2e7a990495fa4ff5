"""The detection demo on few scenes: complete, and honest when it does not pass."""

import json
from pathlib import Path

import pytest

from tests.demo.test_scenes import made_up
from unbranch.demo.detection.outcome import Outcome
from unbranch.demo.detection.results import LOOK, markdown, proofs, rows
from unbranch.demo.detection.road import run
from unbranch.detect.errors import InputError

FEW = {"train": 8, "val": 4, "test": 4}
TINY = {"block": "repvgg", "channels": [4, 8, 8, 8, 8], "depths": [1, 1, 1, 1], "neck_depth": 1}
FILES = {
    "branched.onnx", "detections", "digits.bin", "digits.onnx", "digits.safetensors", "digits.xml", "results.json",
    "results.md", "scenes", "scenes.jpg", "times.png", "training",
}  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A road walked with little."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("unbranch.demo.detection.scenes.load_sources", lambda held_out: made_up())
        return folder, run(folder, epochs=1, counts=FEW, network=TINY, pairs=2, quiet=True)


def test_the_road_is_complete(demo: tuple[Path, Outcome]) -> None:
    folder, outcome = demo
    assert {path.name for path in folder.iterdir()} == FILES
    assert set(LOOK) <= FILES
    assert len(list((folder / "detections").iterdir())) == FEW["test"]
    assert (folder / "times.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "scenes.jpg").read_bytes().startswith(b"\xff\xd8")
    assert (folder / "training" / "train_batch.jpg").exists()
    assert outcome.proved
    assert outcome.before.map50 == pytest.approx(outcome.after.map50, abs=1e-3)
    assert outcome.after.totals.ops < outcome.before.totals.ops
    assert [file.name for file in outcome.files] == ["digits.onnx", "digits.xml"]
    assert list(outcome.times) == ["torch", "onnxruntime", "openvino"]


def test_one_epoch_is_not_enough_and_the_results_say_so(demo: tuple[Path, Outcome]) -> None:
    folder, outcome = demo
    assert not outcome.passed
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(outcome.to_dict()))
    text = (folder / "results.md").read_text()
    assert text == markdown(outcome)
    assert "NOT PASSED" in text
    for row in rows(outcome):
        assert f"| {' | '.join(row)} |" in text
    for proof in proofs(outcome):
        assert f"- {proof}" in text


def test_a_folder_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=r"taken/demo/results\.json: cannot be written"):
        run(tmp_path / "taken" / "demo", counts=FEW)


@pytest.mark.slow
def test_the_demo_learns_and_passes(tmp_path: Path) -> None:
    outcome = run(tmp_path, quiet=True)
    assert outcome.passed, markdown(outcome)
