"""Check a data set against its pictures, once, before training: what is sound stays, the rest is named."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unbranch.detect.data.pictures import CorruptPictureError, Held, Keeper, Kind, cache_folder, choose
from unbranch.detect.data.problems import Problem, Report
from unbranch.detect.data.records import Entry, RawBox
from unbranch.detect.data.spec import Spec
from unbranch.detect.errors import InputError

BORDER_TOLERANCE = 1.0
"""Pixels by which a box may leave its picture before it counts as wrong; it is cut at the border."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Labels:
    """The checked boxes of one picture: corners (x1, y1, x2, y2) in pixels of the upright picture, classes,
    crowd."""

    boxes: Float[Tensor, "n 4"]
    classes: Int64[Tensor, " n"]
    crowd: Bool[Tensor, " n"]

    @property
    def trained(self) -> "Labels":
        """Without the crowd boxes, which no loss looks at."""
        single = ~self.crowd
        return Labels(self.boxes[single], self.classes[single], self.crowd[single])


@dataclass(frozen=True)
class Split:
    """A checked split: pictures held at `size` pixels, with their paths and labels, all in one order."""

    name: str
    names: tuple[str, ...]
    size: int
    paths: Sequence[Path]
    held: Sequence[Held]
    labels: Sequence[Labels]
    report: Report

    def __len__(self) -> int:
        return len(self.paths)


def check_splits(
    spec: Spec,
    splits: Sequence[str],
    size: int,
    cache: Kind = "auto",
    folder: Path | None = None,
    sharers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Split]:
    """Read and check several splits of one data set; a picture that two of them hold is reported.

    Raises InputError where a split is unknown, has no sound picture, or the first of them no sound box.
    """
    checked: dict[str, Split] = {}
    owner: dict[str, str] = {}
    for name in splits:
        split = check_split(spec, name, size, cache, folder, sharers, progress)
        for path, held in zip(split.paths, split.held, strict=True):
            if owner.setdefault(held.digest, name) != name:
                split.report.add(Problem.SHARED_PICTURE, f"{path} (also in {owner[held.digest]})")
        checked[name] = split
    return checked


def check_split(
    spec: Spec,
    split: str,
    size: int,
    cache: Kind = "auto",
    folder: Path | None = None,
    sharers: int = 1,
    progress: Progress | None = None,
) -> Split:
    """Read one split, decode every picture, and keep what is sound.

    size: the longer side of the held pictures, in pixels. cache: where decoded pictures stay ("auto" takes
    memory where there is room for them). Raises InputError where nothing is left to train or measure on.
    """
    if split not in spec.splits:
        raise InputError(f"the data set has no split '{split}'; it has {', '.join(spec.splits)}")
    report = Report(split)
    entries = list(spec.entries(split, report))
    kind = choose(len(entries), size, sharers) if cache == "auto" else cache
    keeper = Keeper(size, kind, folder or cache_folder())
    kept = list(_sound(entries, keeper, report, progress))
    if not kept:
        raise InputError(f"{split}: no sound picture among {len(entries)}: {report.faults()}")
    labels = [_labels(entry, held, report) for entry, held in kept]
    report.pictures = len(kept)
    report.backgrounds = sum(len(found.classes) == 0 for found in labels)
    count = torch.bincount(torch.cat([found.classes for found in labels]), minlength=len(spec.names))
    report.boxes.update(dict(zip(spec.names, count.tolist(), strict=True)))
    if not any(len(found.trained.classes) for found in labels):
        faults = report.faults()
        raise InputError(f"{split}: no sound box in {len(kept)} pictures: {faults}; label them first")
    return Split(split, spec.names, size, [e.path for e, _ in kept], [h for _, h in kept], labels, report)


def _sound(
    entries: Sequence[Entry], keeper: Keeper, report: Report, progress: Progress | None
) -> Iterable[tuple[Entry, Held]]:
    def attempt(entry: Entry) -> Held | CorruptPictureError | None:
        try:
            return keeper.hold(entry.path)
        except CorruptPictureError as error:
            return error
        except OSError:
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, (entry, found) in enumerate(
            zip(entries, pool.map(attempt, entries), strict=True), start=1
        ):
            if found is None:
                report.add(Problem.MISSING_PICTURE, str(entry.path))
            elif isinstance(found, CorruptPictureError):
                report.add(Problem.CORRUPT_PICTURE, str(entry.path))
            else:
                yield entry, found
            if progress is not None:
                progress(report.split, number, len(entries))


def _labels(entry: Entry, held: Held, report: Report) -> Labels:
    seen: set[tuple[float, ...]] = set()
    rows: list[tuple[tuple[float, ...], RawBox]] = []
    for box in entry.boxes:
        corners = _corners(box, entry.relative, held, report)
        if corners is None:
            continue
        key = (*corners, float(box.category))
        if key in seen:
            report.add(Problem.DUPLICATE_BOX, box.where)
            continue
        seen.add(key)
        rows.append((corners, box))
    return Labels(
        torch.tensor([corners for corners, _ in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([box.category for _, box in rows], dtype=torch.int64),
        torch.tensor([box.crowd for _, box in rows], dtype=torch.bool),
    )


def _corners(box: RawBox, relative: bool, held: Held, report: Report) -> tuple[float, ...] | None:
    sides = (held.width, held.height, held.width, held.height)
    given = [c * s for c, s in zip(box.corners, sides, strict=True)] if relative else list(box.corners)
    x1, y1, x2, y2 = given
    if x2 <= x1 or y2 <= y1:
        report.add(Problem.ZERO_AREA, box.where)
        return None
    overhang = max(-x1, -y1, x2 - held.width, y2 - held.height)
    if overhang > BORDER_TOLERANCE:
        report.add(
            Problem.OUT_OF_RANGE, f"{box.where} ({overhang:.0f} px outside {held.width}x{held.height})"
        )
        return None
    cut = tuple(min(max(c, 0.0), float(s)) for c, s in zip(given, sides, strict=True))
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        report.add(Problem.ZERO_AREA, box.where)
        return None
    return cut
