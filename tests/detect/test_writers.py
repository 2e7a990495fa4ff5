"""What is kept of a run, read back."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision as sv

from tests.detect.photographs import picture
from unbranch.detect.errors import InputError
from unbranch.detect.predict import Result
from unbranch.detect.sources import PictureFile, VideoFile, VideoFrame
from unbranch.detect.writers import KINDS, Kind, Writers, draw

NAMES = ("cat", "dog")


def detections(*rows: tuple[float, float, float, float, float, int]) -> sv.Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    classes = table[:, 5].astype(int)
    names = np.array(NAMES)[classes]
    return sv.Detections(table[:, :4], confidence=table[:, 4], class_id=classes, data={"class_name": names})


BOXES = detections((8, 6, 40, 30, 0.75, 1), (0, 0, 64, 48, 0.5, 0))


def result(name: str, found: sv.Detections = BOXES, seed: int = 0) -> Result:
    return Result(PictureFile(Path(name), name), found, picture(seed=seed), {})


def frames(name: str, count: int) -> list[Result]:
    video = VideoFile(Path(name), name)
    made = [VideoFrame(video, index, 12.0, picture(seed=index)) for index in range(count)]
    return [Result(frame, BOXES, frame.pixels, {}) for frame in made]


def write(folder: Path, *results: Result, kinds: tuple[Kind, ...] = KINDS) -> None:
    write_all(folder, results, kinds)


def write_all(folder: Path, results: Iterable[Result], kinds: tuple[Kind, ...] = KINDS) -> None:
    with Writers(folder, NAMES, kinds) as writers:
        for one in results:
            writers.write(one)


def test_yolo_text(tmp_path: Path) -> None:
    write(tmp_path, result("deep/a.jpg"), result("b.png", detections()), kinds=("txt",))
    lines = (tmp_path / "labels" / "deep" / "a.txt").read_text().splitlines()
    assert lines == [
        "1 0.375000 0.375000 0.500000 0.500000 0.750000",
        "0 0.500000 0.500000 1.000000 1.000000 0.500000",
    ]
    assert (tmp_path / "labels" / "b.txt").read_text() == ""


def test_text_files_of_pictures_that_share_a_stem(tmp_path: Path) -> None:
    write(tmp_path, result("a.jpg"), result("a.png", detections()), kinds=("txt",))
    assert len((tmp_path / "labels" / "a.txt").read_text().splitlines()) == 2
    assert (tmp_path / "labels" / "a.png.txt").read_text() == ""


def test_coco_json(tmp_path: Path) -> None:
    write(tmp_path, result("a.jpg"), result("b.jpg", detections()), *frames("c.avi", 2), kinds=("coco",))
    whole = json.loads((tmp_path / "detections.json").read_text())
    assert whole["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [image["file_name"] for image in whole["images"]] == ["a.jpg", "b.jpg", "c.avi", "c.avi"]
    assert [image.get("frame") for image in whole["images"]] == [None, None, 0, 1]
    first = whole["annotations"][0]
    assert first == {
        "id": 1,
        "image_id": 1,
        "category_id": 2,
        "bbox": [8.0, 6.0, 32.0, 24.0],
        "area": 768.0,
        "score": 0.75,
        "iscrowd": 0,
    }
    assert [a["image_id"] for a in whole["annotations"]] == [1, 1, 3, 3, 4, 4]
    ids = [a["id"] for a in whole["annotations"]]
    assert len(set(ids)) == len(ids)


def test_csv(tmp_path: Path) -> None:
    write(tmp_path, result('a "b", c.jpg'), *frames("c.avi", 1), kinds=("csv",))
    with (tmp_path / "detections.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0] == {
        "picture": 'a "b", c.jpg',
        "frame": "",
        "class": "1",
        "name": "dog",
        "score": "0.750000",
        "x1": "8.000",
        "y1": "6.000",
        "x2": "40.000",
        "y2": "30.000",
    }
    assert [row["frame"] for row in rows] == ["", "", "0", "0"]


def test_drawn_pictures(tmp_path: Path) -> None:
    write(tmp_path, *(result(f"{i}.png", seed=i) for i in range(30)), kinds=("pictures",))
    for i in range(30):
        drawn = cv2.imread(str(tmp_path / f"{i}.png"))
        assert np.array_equal(np.asarray(drawn), draw(picture(seed=i), BOXES))
        assert not np.array_equal(np.asarray(drawn), picture(seed=i))
    untouched = picture()
    assert np.array_equal(draw(untouched, detections()), picture())
    draw(untouched, BOXES)
    assert np.array_equal(untouched, picture()), "drawing must not change the picture it is given"


def test_drawn_videos(tmp_path: Path) -> None:
    write(tmp_path, *frames("a.avi", 20), result("x.png"), *frames("b.mov", 7), kinds=("pictures",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "x.png"]
    for name, count in (("a.mp4", 20), ("b.mp4", 7)):
        film = cv2.VideoCapture(str(tmp_path / name))
        assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
        seen = []
        while (step := film.read())[0]:
            seen.append(np.asarray(step[1]).astype(int))
        film.release()
        assert len(seen) == count
        drawn = draw(picture(seed=count - 1), BOXES).astype(int)
        assert abs(seen[-1] - drawn).mean() < 15, "frames are in order and have their boxes"


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Result]:
        yield result("a.jpg")
        yield from frames("c.avi", 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all(tmp_path, interrupted())
    assert len(json.loads((tmp_path / "detections.json").read_text())["images"]) == 4
    assert len((tmp_path / "detections.csv").read_text().splitlines()) == 9
    assert (tmp_path / "a.jpg").is_file()
    assert (tmp_path / "c.mp4").is_file()
    assert not list(tmp_path.rglob("*.part*"))


def test_pictures_that_could_not_be_read_leave_nothing(tmp_path: Path) -> None:
    bad = Result(PictureFile(Path("a.jpg"), "a.jpg"), detections(), None, {}, "a.jpg: the file is empty")
    write(tmp_path, bad, kinds=("pictures", "txt"))
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for kind in KINDS:
        with pytest.raises(InputError, match="cannot be written") as caught:
            write(tmp_path / "file", result("a.jpg"), kinds=(kind,))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "file", *frames("a.avi", 2), kinds=("pictures",))
