"""YOLO: a picture folder (or a list file) a split, and beside each picture a text file of boxes.

A line of a label file is `class cx cy w h`, in fractions of the picture's sides; a line with more numbers is
an outline `class x1 y1 x2 y2 …`, of which the bounding box is taken. `images/` in a picture's path becomes
`labels/` in that of its label.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unbranch.detect.data.problems import Problem, Report
from unbranch.detect.data.records import PICTURE_SUFFIXES, Entry, RawBox
from unbranch.detect.errors import InputError


@dataclass(frozen=True)
class YoloSpec:
    """A YOLO data set: `sources` maps a split to folders, list files or single pictures."""

    names: tuple[str, ...]
    sources: dict[str, tuple[Path, ...]]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that were named."""
        return tuple(self.sources)

    def entries(self, split: str, report: Report) -> Iterator[Entry]:
        """Read every picture of `split` with its label file. Raises InputError where no label file is
        there."""
        taken: set[Path] = set()
        looked_for = missing = 0
        label = Path()
        for picture in self._pictures(split):
            label = label_path(picture)
            if label in taken:
                report.add(Problem.DUPLICATE_STEM, str(picture))
                continue
            taken.add(label)
            looked_for += 1
            if label.is_file():
                yield Entry(picture, tuple(read_labels(label, len(self.names), report)), relative=True)
                continue
            missing += 1
            report.add(Problem.MISSING_LABEL, str(picture))
            yield Entry(picture, relative=True)
        if looked_for and looked_for == missing:
            raise InputError(
                f"{split}: none of its {looked_for} pictures has a label file (looked for {label} and "
                "its like); put the labels there"
            )

    def _pictures(self, split: str) -> Iterator[Path]:
        for source in self.sources[split]:
            if source.is_dir():
                yield from sorted(p for p in source.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
            elif source.suffix.lower() == ".txt" and source.is_file():
                yield from listed_pictures(source)
            elif source.is_file():
                yield source
            else:
                raise InputError(f"{split}: {source} is not there; give a folder, a list file or a picture")


def listed_pictures(source: Path) -> list[Path]:
    """The pictures a list file names, one a line, relative to the file's own folder."""
    lines = source.read_text(encoding="utf-8").splitlines()
    return [source.parent / line.strip() for line in lines if line.strip()]


def label_path(picture: Path) -> Path:
    """Where the label of `picture` lies: the last folder called `images` becomes `labels`, the suffix `.txt`.

    Example:
        >>> label_path(Path("cells/images/train/a.jpg")).as_posix()
        'cells/labels/train/a.txt'
    """
    parts = list(picture.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_labels(label: Path, num_classes: int, report: Report) -> Iterator[RawBox]:
    """The boxes of one label file, in fractions; a line that cannot be read is reported and skipped."""
    text = label.read_bytes().decode("utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{label} line {number}"
        values = _numbers(line)
        if values is None or not (len(values) == 5 or (len(values) >= 7 and len(values) % 2 == 1)):
            report.add(Problem.MALFORMED_LABEL, where)
        elif values[0] != int(values[0]) or not 0 <= values[0] < num_classes:
            report.add(
                Problem.UNKNOWN_CLASS, f"{where} (class {values[0]:g}, the data set has {num_classes})"
            )
        else:
            yield RawBox(_corners(values[1:]), int(values[0]), crowd=False, where=where)


def _numbers(line: str) -> list[float] | None:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        return None
    return values if all(math.isfinite(value) for value in values) else None


def _corners(values: list[float]) -> tuple[float, float, float, float]:
    if len(values) == 4:
        cx, cy, w, h = values
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    return min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2])
