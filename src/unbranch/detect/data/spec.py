"""Open a data set by what it is: a YAML file, a mapping, or a folder laid out as VOC, COCO or YOLO."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from unbranch.detect.data.coco import CocoSpec
from unbranch.detect.data.voc import VocSpec, class_names
from unbranch.detect.data.yolo import YoloSpec
from unbranch.detect.errors import InputError

__all__ = ["SPLITS", "Spec", "open_spec"]

SPLITS = ("train", "val", "test")

Spec: TypeAlias = YoloSpec | CocoSpec | VocSpec
"""An opened data set: `names`, `splits`, and `entries(split, report)`, which reads the labels of a split."""


def open_spec(source: str | Path | Mapping[str, Any]) -> Spec:
    """Open a data set; no picture is read yet.

    source: a `data.yaml` (keys `path`, `train`, `val`, `test`, `names`, and `format`: yolo, coco or voc), the
    same as a mapping, or a folder: one with `JPEGImages` and `Annotations` (VOC), with
    `annotations/instances_*.json` (COCO), or with a `data.yaml` in it.

    Raises InputError with one line where it is none of these or a key is missing or wrong.

    Example:
        >>> open_spec({"path": "cells", "train": "images/train", "names": ["red", "white"]}).names
        ('red', 'white')
    """
    if isinstance(source, Mapping):
        return _from_mapping(dict(source), Path.cwd(), "data")
    path = Path(source)
    if path.is_dir():
        return _from_folder(path)
    if path.is_file() and path.suffix.lower() in {".yaml", ".yml"}:
        return _from_mapping(_read_yaml(path), path.parent, str(path))
    if not path.exists():
        raise InputError(f"{path} is not there; give a data.yaml or a data set's folder")
    raise InputError(f"{path} is no data set; give a data.yaml or a folder (VOC, COCO or YOLO)")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no mapping; it needs the keys train, val and names")
    return content


def _from_folder(root: Path) -> Spec:
    if (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir():
        return _voc({"train": "train", "val": "val", "test": "test"}, root, str(root), optional=True)
    files = {
        split: next(iter(sorted((root / "annotations").glob(f"instances_{split}*.json"))), None)
        for split in SPLITS
    }
    coco = {split: (_coco_pictures(root, file), file) for split, file in files.items() if file is not None}
    if coco:
        return CocoSpec(coco)
    for name in ("data.yaml", "data.yml"):
        if (root / name).is_file():
            return _from_mapping(_read_yaml(root / name), root, str(root / name))
    raise InputError(
        f"{root} holds no data set: no JPEGImages and Annotations (VOC), no annotations/instances_*.json "
        "(COCO), no data.yaml (YOLO)"
    )


def _coco_pictures(root: Path, file: Path) -> Path:
    """`train2017` beside `annotations`, or the same below `images`."""
    name = file.stem.removeprefix("instances_")
    below = root / "images" / name
    return below if below.is_dir() else root / name


def _from_mapping(content: dict[str, Any], base: Path, where: str) -> Spec:
    root = _root(content, base, where)
    kind = content.get("format", "yolo")
    if kind == "yolo":
        return _yolo(content, root, where)
    if kind == "coco":
        return _coco(content, root, where)
    if kind == "voc":
        return _voc(content, root, where, optional=False)
    raise InputError(f"{where}: format is {kind!r}; it can be yolo, coco or voc")


def _root(content: dict[str, Any], base: Path, where: str) -> Path:
    given = content.get("path")
    if given is None:
        return base
    if not isinstance(given, str | Path):
        raise InputError(f"{where}: path is {given!r}; give the data set's folder")
    return next((p for p in (base / given, Path(given)) if p.is_dir()), base / given)


def _names(content: dict[str, Any], where: str) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise InputError(f"{where}: names has the indices {sorted(names)}; number the classes 0, 1, 2, …")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list | tuple) or not names:
        raise InputError(f"{where}: names is {names!r}; list the class names")
    if content.get("nc", len(names)) != len(names):
        raise InputError(f"{where}: nc is {content['nc']} and names has {len(names)}; make them agree")
    repeated = sorted({str(name) for name in names if list(names).count(name) > 1})
    if repeated:
        raise InputError(f"{where}: names has {repeated[0]!r} twice; give each class its own name")
    return tuple(str(name) for name in names)


def _present(content: dict[str, Any], where: str) -> list[str]:
    found = [split for split in SPLITS if content.get(split)]
    if not found:
        raise InputError(f"{where}: no split; add a line such as 'train: images/train'")
    return found


def _yolo(content: dict[str, Any], root: Path, where: str) -> YoloSpec:
    sources: dict[str, tuple[Path, ...]] = {}
    for split in _present(content, where):
        given = content[split]
        items = given if isinstance(given, list | tuple) else [given]
        if not all(isinstance(item, str | Path) for item in items):
            raise InputError(f"{where}: {split} is {given!r}; give a folder, a list file, or a list of these")
        sources[split] = tuple(root / item for item in items)
    return YoloSpec(_names(content, where), sources)


def _coco(content: dict[str, Any], root: Path, where: str) -> CocoSpec:
    sources: dict[str, tuple[Path, Path]] = {}
    for split in _present(content, where):
        given = content[split]
        if not isinstance(given, dict) or set(given) != {"images", "annotations"}:
            raise InputError(
                f"{where}: {split} is {given!r}; give {{images: folder, annotations: file.json}}"
            )
        sources[split] = (root / given["images"], root / given["annotations"])
    return CocoSpec(sources)


def _voc(content: dict[str, Any], root: Path, where: str, *, optional: bool) -> VocSpec:
    lists = root / "ImageSets" / "Main"
    sources = {split: str(content[split]).removesuffix(".txt") for split in _present(content, where)}
    if optional:
        sources = {split: name for split, name in sources.items() if (lists / f"{name}.txt").is_file()}
        if not sources:
            raise InputError(f"{lists} holds no train.txt, val.txt or test.txt; list the splits there")
    names = (
        _names(content, where) if content.get("names") else class_names(root, next(iter(sources.values())))
    )
    if not names:
        raise InputError(f"{where}: no annotation names a class; label the pictures first")
    return VocSpec(root, names, sources)
