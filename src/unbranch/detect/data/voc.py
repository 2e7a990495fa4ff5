"""Pascal VOC: `JPEGImages/`, an XML file a picture in `Annotations/`, and the splits in `ImageSets/Main/`.

Corners are read as they stand, as points in pixels: that is how today's labelling tools write them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from unbranch.detect.data.problems import Problem, Report
from unbranch.detect.data.records import PICTURE_SUFFIXES, Entry, RawBox
from unbranch.detect.errors import InputError


@dataclass(frozen=True)
class VocSpec:
    """A Pascal VOC data set below `root`; `sources` maps a split to its list in `ImageSets/Main`."""

    root: Path
    names: tuple[str, ...]
    sources: dict[str, str]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that were named."""
        return tuple(self.sources)

    def entries(self, split: str, report: Report) -> Iterator[Entry]:
        """Read every picture that the split's list names, with its XML file."""
        index = {name: position for position, name in enumerate(self.names)}
        taken: set[str] = set()
        for stem in listed_stems(self.root, self.sources[split]):
            if stem in taken:
                report.add(Problem.DUPLICATE_STEM, f"{self.sources[split]}.txt {stem}")
                continue
            taken.add(stem)
            picture = find_picture(self.root, stem)
            label = self.root / "Annotations" / f"{stem}.xml"
            if not label.is_file():
                report.add(Problem.MISSING_LABEL, str(picture))
                yield Entry(picture)
                continue
            yield Entry(picture, tuple(_boxes(label, index, report)))


def listed_stems(root: Path, name: str) -> list[str]:
    """The first word of each line of `ImageSets/Main/<name>.txt`. Raises InputError where it is not there."""
    file = root / "ImageSets" / "Main" / f"{name}.txt"
    if not file.is_file():
        raise InputError(f"{file} is not there; a VOC split is a list of file stems at that place")
    return [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def find_picture(root: Path, stem: str) -> Path:
    """The picture of `stem`, whatever its suffix; `.jpg` is named where none is there."""
    folder = root / "JPEGImages"
    for suffix in (".jpg", *sorted(PICTURE_SUFFIXES - {".jpg"})):
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    return folder / f"{stem}.jpg"


def class_names(root: Path, name: str) -> tuple[str, ...]:
    """Every class that the annotations of one split use, in alphabetical order."""
    found: set[str] = set()
    for stem in listed_stems(root, name):
        label = root / "Annotations" / f"{stem}.xml"
        tree = _parse(label) if label.is_file() else None
        if tree is not None:
            found.update((item.findtext("name") or "").strip() for item in tree.iter("object"))
    return tuple(sorted(found - {""}))


def _parse(label: Path) -> ElementTree.Element | None:
    try:
        return ElementTree.fromstring(label.read_bytes())
    except ElementTree.ParseError:
        return None


def _boxes(label: Path, index: dict[str, int], report: Report) -> Iterator[RawBox]:
    tree = _parse(label)
    if tree is None:
        report.add(Problem.MALFORMED_LABEL, str(label))
        return
    for number, item in enumerate(tree.iter("object"), start=1):
        where = f"{label} object {number}"
        corners = _corners(item)
        name = (item.findtext("name") or "").strip()
        if corners is None:
            report.add(Problem.MALFORMED_LABEL, where)
        elif name not in index:
            report.add(Problem.UNKNOWN_CLASS, f"{where} (class '{name}')")
        else:
            difficult = (item.findtext("difficult") or "0").strip() == "1"
            yield RawBox(corners, index[name], difficult, where)


def _corners(item: ElementTree.Element) -> tuple[float, float, float, float] | None:
    try:
        x1, y1, x2, y2 = (
            float(item.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError:
        return None
    return (x1, y1, x2, y2) if all(math.isfinite(v) for v in (x1, y1, x2, y2)) else None
