"""Three formats, one meaning; every fault counted, named and skipped."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.detect.data_sets import write_picture
from unbranch.detect.data import Problem, Report, check_split, check_splits, open_spec
from unbranch.detect.data.check import Split
from unbranch.detect.data.pictures import CorruptPictureError, InMemory, Keeper, OnDisk, decode
from unbranch.detect.data.yolo import label_path
from unbranch.detect.errors import InputError


def yolo(root: Path, labels: dict[str, str], names: str = "[a, b]") -> Path:
    for index, (stem, text) in enumerate(labels.items()):
        write_picture(root / "images" / f"{stem}.png", seed=index)
        label = root / "labels" / f"{stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(text)
    file = root / "data.yaml"
    file.write_text(f"train: images\nnames: {names}\n")
    return file


def read(source: Any, split: str = "train", **options: Any) -> Split:
    return check_split(open_spec(source), split, 64, "ram", **options)


GOOD = "0 0.5 0.5 0.25 0.5"


def test_yolo_boxes_are_fractions_of_the_picture(tmp_path: Path) -> None:
    split = read(yolo(tmp_path, {"p": GOOD + "\n1 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6\n"}))
    np.testing.assert_allclose(split.labels[0].boxes, [[24, 12, 40, 36], [6.4, 9.6, 19.2, 28.8]], atol=1e-5)
    assert split.labels[0].classes.tolist() == [0, 1]
    assert split.report.lines()[0] == "train: 1 pictures, 2 boxes (a 1, b 1)"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0 0.5 0.5 0.25", Problem.MALFORMED_LABEL),
        ("0 0.5 0.5 0.25 x", Problem.MALFORMED_LABEL),
        ("0 0.5 0.5 0.25 nan", Problem.MALFORMED_LABEL),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", Problem.MALFORMED_LABEL),
        ("\x00\x01\x02", Problem.MALFORMED_LABEL),
        ("2 0.5 0.5 0.25 0.5", Problem.UNKNOWN_CLASS),
        ("-1 0.5 0.5 0.25 0.5", Problem.UNKNOWN_CLASS),
        ("0.5 0.5 0.5 0.25 0.5", Problem.UNKNOWN_CLASS),
        ("0 0.5 0.5 0 0.5", Problem.ZERO_AREA),
        ("0 0.5 0.5 0.25 -0.5", Problem.ZERO_AREA),
        ("0 1.2 0.5 0.25 0.5", Problem.OUT_OF_RANGE),
        ("0 24 12 16 24", Problem.OUT_OF_RANGE),
        (GOOD, Problem.DUPLICATE_BOX),
    ],
)
def test_a_bad_yolo_line_is_counted_named_and_skipped(tmp_path: Path, text: str, problem: Problem) -> None:
    split = read(yolo(tmp_path, {"p": f"{GOOD}\n{text}\n"}))
    assert {found: split.report.count(found) for found in split.report.problems} == {problem: 1}
    assert "p.txt line 2" in split.report.problems[problem][0]
    assert len(split.labels[0].boxes) == 1
    assert any("1 x " in line and problem.value in line for line in split.report.lines())


def test_an_overhang_of_a_pixel_is_cut_not_dropped(tmp_path: Path) -> None:
    split = read(yolo(tmp_path, {"p": "0 0.95 0.5 0.12 0.5"}))
    assert split.labels[0].boxes[0, 2] == 64
    assert not split.report.problems


def test_empty_and_missing_labels_are_background(tmp_path: Path) -> None:
    file = yolo(tmp_path, {"full": GOOD, "empty": ""})
    write_picture(tmp_path / "images" / "alone.png", seed=9)
    split = read(file)
    assert split.report.backgrounds == 2
    assert split.report.problems == {Problem.MISSING_LABEL: [str(tmp_path / "images" / "alone.png")]}


@pytest.mark.parametrize("damage", ["truncated", "no picture", "empty"])
def test_a_corrupt_picture_is_named_and_skipped(tmp_path: Path, damage: str) -> None:
    file = yolo(tmp_path, {"good": GOOD, "bad": GOOD})
    bad = tmp_path / "images" / "bad.png"
    whole = bad.read_bytes()
    bad.write_bytes({"truncated": whole[: len(whole) // 2], "no picture": b"hello", "empty": b""}[damage])
    split = read(file)
    assert split.report.problems == {Problem.CORRUPT_PICTURE: [str(bad)]}
    assert [path.stem for path in split.paths] == ["good"]


def test_a_truncated_jpeg_is_corrupt(tmp_path: Path) -> None:
    whole = write_picture(tmp_path / "p.jpg", 200, 200).read_bytes()
    with pytest.raises(CorruptPictureError, match=r"p\.jpg cannot be decoded"):
        decode(whole[: len(whole) // 2], "p.jpg")


def test_a_listed_picture_that_is_missing_is_named(tmp_path: Path) -> None:
    yolo(tmp_path, {"p": GOOD, "gone": GOOD})
    (tmp_path / "images" / "gone.png").unlink()
    (tmp_path / "list.txt").write_text("images/p.png\nimages/gone.png\n")
    split = read({"path": str(tmp_path), "train": "list.txt", "names": ["a", "b"]})
    assert split.report.problems == {Problem.MISSING_PICTURE: [str(tmp_path / "images" / "gone.png")]}


def test_two_pictures_of_one_stem_share_no_label(tmp_path: Path) -> None:
    file = yolo(tmp_path, {"p": GOOD})
    write_picture(tmp_path / "images" / "p.jpg")
    split = read(file)
    assert split.report.problems == {Problem.DUPLICATE_STEM: [str(tmp_path / "images" / "p.png")]}


def test_a_picture_in_two_splits_is_named(tmp_path: Path) -> None:
    yolo(tmp_path, {"p": GOOD, "q": GOOD})
    source = {"path": str(tmp_path), "train": "images", "val": "images/p.png", "names": ["a", "b"]}
    found = check_splits(open_spec(source), ["train", "val"], 64, "ram")
    assert found["val"].report.count(Problem.SHARED_PICTURE) == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"p": ""}, "no sound box in 1 pictures"),
        ({"p": "7 0.5 0.5 0.2 0.2"}, r"box of an unknown class.*class 7, the data set has 2"),
    ],
)
def test_a_data_set_without_boxes_is_an_error_of_one_line(
    tmp_path: Path, labels: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(yolo(tmp_path, labels))
    assert "\n" not in str(caught.value)


def test_labels_in_the_wrong_place_are_an_error(tmp_path: Path) -> None:
    file = yolo(tmp_path, {"p": GOOD})
    os.rename(tmp_path / "labels", tmp_path / "annotations")
    with pytest.raises(InputError, match=r"none of its 1 pictures has a label file \(looked for .*labels"):
        read(file)


def test_the_last_images_folder_becomes_labels() -> None:
    assert label_path(Path("images/cells/images/a.b.png")) == Path("images/cells/labels/a.b.txt")
    assert label_path(Path("pictures/images.png")) == Path("pictures/images.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: [", "is not YAML"),
        ("- 1", "is no mapping"),
        ("train: images", "names is None"),
        ("names: [a]", "no split"),
        ("train: images\nnames: {0: a, 2: b}", "indices"),
        ("train: images\nnames: [a, a]", "'a' twice"),
        ("train: images\nnames: [a]\nnc: 2", "nc is 2"),
        ("train: images\nnames: [a]\nformat: kitti", "format is 'kitti'"),
        ("train: 3\nnames: [a]", "train is 3"),
        ("train: nowhere\nnames: [a]", "nowhere is not there"),
        ("path: 3\ntrain: images\nnames: [a]", "path is 3"),
        ("format: coco\ntrain: images\n", "give {images: folder"),
        ("format: voc\ntrain: train\n", "ImageSets/Main/train.txt is not there"),
    ],
)
def test_a_wrong_data_yaml_is_an_error_of_one_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nothing.yaml", "folder", "file.txt"])
def test_what_is_no_data_set_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(InputError, match=r"is not there|holds no data set|is no data set"):
        open_spec(tmp_path / name)


def coco(root: Path, annotations: list[dict[str, Any]], **more: Any) -> Path:
    write_picture(root / "train2017" / "p.png")
    content = {
        "images": [{"id": 7, "file_name": "p.png"}],
        "categories": [{"id": 30, "name": "b"}, {"id": 4, "name": "a"}],
        "annotations": annotations,
        **more,
    }
    file = root / "annotations" / "instances_train2017.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return root


BOX = {"image_id": 7, "category_id": 30, "bbox": [10, 12, 20, 8]}


def test_coco_folder(tmp_path: Path) -> None:
    split = read(coco(tmp_path, [BOX, {**BOX, "category_id": 4, "iscrowd": 1, "bbox": [1, 1, 30, 30]}]))
    assert split.names == ("a", "b")
    assert split.labels[0].boxes.tolist() == [[10, 12, 30, 20], [1, 1, 31, 31]]
    assert split.labels[0].classes.tolist() == [1, 0]
    assert split.labels[0].crowd.tolist() == [False, True]
    assert split.labels[0].trained.classes.tolist() == [1]


@pytest.mark.parametrize(
    ("annotation", "problem"),
    [
        ({**BOX, "category_id": 31}, Problem.UNKNOWN_CLASS),
        ({**BOX, "bbox": [1, 2, 3]}, Problem.MALFORMED_LABEL),
        ({**BOX, "bbox": [1, 2, "3", 4]}, Problem.MALFORMED_LABEL),
        ({"category_id": 30, "bbox": [1, 2, 3, 4]}, Problem.MALFORMED_LABEL),
        ({**BOX, "bbox": [1, 2, 3, 0]}, Problem.ZERO_AREA),
        ({**BOX, "bbox": [50, 2, 30, 5]}, Problem.OUT_OF_RANGE),
    ],
)
def test_a_bad_coco_annotation_is_named(tmp_path: Path, annotation: dict[str, Any], problem: Problem) -> None:
    split = read(coco(tmp_path, [BOX, annotation]))
    assert list(split.report.problems) == [problem]
    assert len(split.labels[0].boxes) == 1


def test_a_coco_picture_listed_twice_is_named(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "p.png"}, {"id": 8, "file_name": "p.png"}]
    split = read(coco(tmp_path, [BOX], images=images))
    assert split.report.count(Problem.DUPLICATE_STEM) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}'])
def test_a_broken_coco_file_is_an_error(tmp_path: Path, content: str) -> None:
    root = coco(tmp_path, [BOX])
    (root / "annotations" / "instances_train2017.json").write_text(content)
    with pytest.raises(InputError, match=r"instances_train2017\.json (is not JSON|has no list)"):
        read(root)


def voc(root: Path, objects: str, stems: str = "p\n") -> Path:
    write_picture(root / "JPEGImages" / "p.jpg")
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "Annotations" / "p.xml").write_text(f"<annotation>{objects}</annotation>")
    (root / "ImageSets" / "Main" / "train.txt").write_text(stems)
    return root


def xml(name: str, *corners: object, difficult: int = 0) -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{corner}</{key}>" for key, corner in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def test_voc_folder(tmp_path: Path) -> None:
    split = read(voc(tmp_path, xml("cow", 1, 2, 30, 40) + xml("ant", 5, 5, 9, 9, difficult=1)))
    assert split.names == ("ant", "cow")
    assert split.labels[0].boxes.tolist() == [[1, 2, 30, 40], [5, 5, 9, 9]]
    assert split.labels[0].crowd.tolist() == [False, True]


@pytest.mark.parametrize(
    ("objects", "problem"),
    [
        (xml("cow", 1, 2, 1, 2), Problem.ZERO_AREA),
        (xml("cow", 1, 2, "x", 2), Problem.MALFORMED_LABEL),
        (xml("cow", 1, 2, 99, 9), Problem.OUT_OF_RANGE),
    ],
)
def test_a_bad_voc_object_is_named(tmp_path: Path, objects: str, problem: Problem) -> None:
    split = read(voc(tmp_path, xml("cow", 1, 2, 30, 40) + objects))
    assert list(split.report.problems) == [problem]
    assert "p.xml object 2" in split.report.problems[problem][0]


def test_voc_faults_of_whole_files(tmp_path: Path) -> None:
    root = voc(tmp_path, xml("cow", 1, 2, 30, 40), stems="p\np\nq\nr\n")
    write_picture(root / "JPEGImages" / "q.jpg", seed=1)
    (root / "Annotations" / "q.xml").write_text("<annotation>")
    split = read(root)
    assert {problem: split.report.count(problem) for problem in split.report.problems} == {
        Problem.DUPLICATE_STEM: 1,
        Problem.MALFORMED_LABEL: 1,
        Problem.MISSING_LABEL: 1,
        Problem.MISSING_PICTURE: 1,
    }


def test_a_class_that_training_does_not_know_is_named(tmp_path: Path) -> None:
    root = voc(tmp_path, xml("cow", 1, 2, 30, 40))
    write_picture(root / "JPEGImages" / "q.jpg", seed=1)
    other = xml("cow", 1, 2, 30, 40) + xml("emu", 1, 2, 30, 40)
    (root / "Annotations" / "q.xml").write_text(f"<annotation>{other}</annotation>")
    (root / "ImageSets" / "Main" / "val.txt").write_text("q")
    split = read(root, "val")
    assert "class 'emu'" in split.report.problems[Problem.UNKNOWN_CLASS][0]


def test_exif_orientation_turns_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "p.jpg"
    turned = Image.fromarray(np.zeros((48, 64, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(path, exif=exif)
    held = Keeper(32, "ram", tmp_path).hold(path)
    assert (held.height, held.width, tuple(held.pixels().shape)) == (64, 48, (3, 32, 24))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).convert(mode).save(path)
    assert decode(path.read_bytes(), "p").shape == (8, 8, 3)


def test_the_caches_hold_the_same_pixels(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "p.png", 100, 60)
    ram, disk, none = (Keeper(64, kind, tmp_path / "cache").hold(path) for kind in ("ram", "disk", "none"))
    assert isinstance(ram, InMemory)
    assert isinstance(disk, OnDisk)
    assert torch.equal(ram.pixels(), disk.pixels())
    assert torch.equal(ram.pixels(), none.pixels())
    assert (disk.height, disk.width) == (60, 100)


def test_the_disk_cache_knows_a_picture_by_its_content(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "p.png", seed=0)
    keeper = Keeper(64, "disk", tmp_path / "cache")
    first = keeper.hold(path).pixels()
    stamp = path.stat()
    write_picture(path, seed=1)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert not torch.equal(keeper.hold(path).pixels(), first)
    files = set((tmp_path / "cache").rglob("*.npy"))
    copied = tmp_path / "copy.png"
    copied.write_bytes(path.read_bytes())
    keeper.hold(copied)
    assert set((tmp_path / "cache").rglob("*.npy")) == files


def test_bccd(shared_data: Path) -> None:
    spec = open_spec(shared_data / "bccd" / "BCCD")
    found = check_splits(spec, ["train", "val", "test"], 64, "ram")
    assert spec.names == ("Platelets", "RBC", "WBC")
    assert {name: len(split) for name, split in found.items()} == {"train": 205, "val": 87, "test": 72}
    faults = [where for split in found.values() for where in split.report.problems.get(Problem.ZERO_AREA, [])]
    assert [Path(where.split(" ")[0]).stem for where in faults] == ["BloodImage_00343", "BloodImage_00338"]
    assert sum(split.report.boxes["RBC"] for split in found.values()) == 4155 - 2


def test_a_report_names_a_few_and_counts_the_rest() -> None:
    report = Report("train")
    for index in range(5):
        report.add(Problem.ZERO_AREA, f"p{index}")
    assert report.lines() == [
        "train: 0 pictures, 0 boxes",
        "  5 x box of zero area, skipped: p0, p1, p2, and 2 more",
    ]
