"""`unbranch detect`: find, look, keep."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unbranch.detect.errors import InputError
from unbranch.detect.predict import STEPS, Detector, Result
from unbranch.detect.sources import Source
from unbranch.detect.writers import Kind, Writers, boxes_of
from unbranch.models.yolo import YOLO


@dataclass(frozen=True)
class Summary:
    """What a run saw: pictures and frames, objects by class name, seconds in all and of each step, and
    problems by line.
    """

    pictures: int
    objects: Mapping[str, int]
    wall: float
    seconds: Mapping[str, float]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    folder: Path

    @property
    def times(self) -> str:
        """Milliseconds of a picture in each step, and pictures a second from start to end; steps overlap."""
        count = max(self.pictures, 1)
        steps = "  ".join(f"{step} {1e3 * self.seconds[step] / count:.1f} ms" for step in STEPS)
        return f"{steps}  in all {self.pictures / self.wall:.1f} pictures a second"


def detect(
    weights: YOLO[Any] | str | os.PathLike[str] | Detector,
    source: Source | Sequence[Source],
    folder: str | os.PathLike[str] = "runs/detect",
    kinds: Iterable[Kind] = ("pictures",),
    batch: int = 1,
    workers: int | None = None,
    each: Callable[[Result], None] | None = None,
) -> Summary:
    """Look at every picture and video of `source`, keep what `kinds` names in `folder`, and say what was
    seen.

    weights: what `Detector` takes, or a `Detector` with its own settings. `each` is called with every result,
    in order. A picture that cannot be read is a problem in the summary and stops nothing. Raises `InputError`
    where nothing can be done at all.
    """
    detector = weights if isinstance(weights, Detector) else Detector(weights)
    target = Path(folder)
    objects: Counter[str] = Counter()
    seconds: dict[str, float] = dict.fromkeys(STEPS, 0.0)
    problems: list[str] = []
    pictures = 0
    started = time.perf_counter()
    with Writers(target, detector.names, kinds) as writers:
        for result in detector.stream(source, batch, workers):
            if result.problem is None:
                pictures += 1
                objects.update(box.name for box in boxes_of(result.detections))
                for step in STEPS:
                    seconds[step] += result.seconds[step]
            else:
                problems.append(result.problem)
            writers.write(result)
            if each is not None:
                each(result)
    wall = time.perf_counter() - started
    return Summary(pictures, dict(objects), wall, seconds, tuple(problems), detector.notes, target)


def class_indices(names: Sequence[str], wanted: Iterable[str | int]) -> tuple[int, ...]:
    """Class indices from names or indices. Raises `InputError` for one that the network does not know.

    >>> class_indices(["cat", "dog"], ["dog", "0"])
    (1, 0)
    """
    found = []
    for one in wanted:
        text = str(one)
        if text in names:
            found.append(list(names).index(text))
        elif text.isdigit() and int(text) < len(names):
            found.append(int(text))
        else:
            shown = ", ".join(names[:10]) + (", …" if len(names) > len(names[:10]) else "")
            raise InputError(f"class {text!r} is unknown; the network knows 0 to {len(names) - 1}: {shown}")
    return tuple(found)


def only_classes(detector: Detector, wanted: Iterable[str | int]) -> None:
    """Let the detector report those classes only, given by name or index."""
    indices = class_indices(detector.names, wanted)
    detector.limits = replace(detector.limits, classes=indices)
