"""COCO JSON: one file a split with `images`, `annotations` (x, y, w, h in pixels) and `categories`."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unbranch.detect.data.problems import Problem, Report
from unbranch.detect.data.records import Entry, RawBox
from unbranch.detect.errors import InputError


@dataclass(frozen=True)
class CocoSpec:
    """A COCO data set: `sources` maps a split to (picture folder, JSON file).

    Classes are the categories of the first split's file, in the order of their ids.
    """

    sources: dict[str, tuple[Path, Path]]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a file."""
        return tuple(self.sources)

    @property
    def names(self) -> tuple[str, ...]:
        """The class names, in the order of the category ids."""
        return tuple(name for _, name in self._categories)

    @cached_property
    def _categories(self) -> list[tuple[int, str]]:
        first = next(iter(self.sources.values()))[1]
        found = sorted((int(c["id"]), str(c["name"])) for c in read_coco(first)["categories"])
        if not found:
            raise InputError(f"{first}: 'categories' is empty; list the classes there")
        return found

    def entries(self, split: str, report: Report) -> Iterator[Entry]:
        """Read every picture of `split` with its annotations."""
        folder, file = self.sources[split]
        content = read_coco(file)
        index = {identity: position for position, (identity, _) in enumerate(self._categories)}
        boxes: dict[Any, list[RawBox]] = defaultdict(list)
        for number, annotation in enumerate(content["annotations"]):
            box = _box(annotation, index, f"{file.name} annotation {annotation.get('id', number)}", report)
            if box is not None:
                boxes[annotation["image_id"]].append(box)
        taken: set[str] = set()
        for picture in content["images"]:
            name = str(picture["file_name"])
            if name in taken:
                report.add(Problem.DUPLICATE_STEM, str(folder / name))
                continue
            taken.add(name)
            yield Entry(folder / name, tuple(boxes[picture["id"]]))


def read_coco(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The content of a COCO file. Raises InputError where it is not JSON or lacks one of its three lists."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{file} is not there; give the path of the split's COCO JSON file") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}); give a COCO annotation file") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{file} has no list '{key}'; give a COCO detection file")
    return content


def _box(annotation: dict[str, Any], index: dict[int, int], where: str, report: Report) -> RawBox | None:
    values = annotation.get("bbox")
    if "image_id" not in annotation or not isinstance(values, list) or len(values) != 4:
        report.add(Problem.MALFORMED_LABEL, where)
        return None
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        report.add(Problem.MALFORMED_LABEL, where)
        return None
    category = annotation.get("category_id")
    if category not in index:
        report.add(Problem.UNKNOWN_CLASS, f"{where} (category {category})")
        return None
    x, y, w, h = (float(v) for v in values)
    return RawBox((x, y, x + w, y + h), index[category], bool(annotation.get("iscrowd", 0)), where)
