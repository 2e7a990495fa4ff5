"""Photographs to boxes, from the folder to the last box: our detector beside ultralytics' predict, on one
ONNX file.

    python benchmarks/detect_end_to_end.py WEIGHTS PICTURES [--rounds 15] [--dynamic]

Both read the same file (its output in the layout that both know) in ONNX Runtime on the CPU, and both decode,
letterbox, run, suppress and return boxes in the picture's pixels; nothing is drawn or written. They take
turns, a round is a pair, and the figure is the median of the pairs' ratios with its 95 % interval. Before timing, both must find the
same boxes.
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

import torch
from results import publish
from torch import Tensor
from torchvision.ops import box_iou

from unbranch.detect import Detector, Limits, Plan, export, import_original, load_model
from unbranch.detect.sources import find
from unbranch.models.yolo import YOLO
from unbranch.runtimes.timing import summarize

SIZE = 640
LIMITS = Limits(confidence=0.25, iou=0.45)
SAME = 0.9


def network(weights: Path) -> YOLO[Any]:
    """Our own checkpoint, or an original one."""
    return import_original(weights) if weights.suffix == ".pt" else load_model(weights)


def ours(file: Path, pictures: list[Path]) -> list[Tensor]:
    """Corners of the boxes on each picture."""
    detector = Detector(file, SIZE, LIMITS)
    return [torch.from_numpy(result.detections.xyxy) for result in detector.stream(pictures)]


class Theirs:
    """ultralytics' predict on the same file, loaded once as a user keeps it loaded."""

    def __init__(self, file: Path) -> None:
        import ultralytics
        from ultralytics.utils import LOGGER

        LOGGER.setLevel(logging.ERROR)
        self.model: Any = ultralytics.YOLO(str(file), task="detect")

    def __call__(self, pictures: list[Path]) -> list[Tensor]:
        """Corners of the boxes on each picture."""
        options: dict[str, Any] = {
            "conf": LIMITS.confidence,
            "iou": LIMITS.iou,
            "imgsz": SIZE,
            "device": "cpu",
        }
        stream = self.model.predict(
            [str(path) for path in pictures], stream=True, verbose=False, save=False, **options
        )
        return [result.boxes.xyxy.cpu() for result in stream]


def agreement(a: list[Tensor], b: list[Tensor]) -> float:
    """The share of boxes that have a partner on the other side, IoU 0.9 or more."""
    paired = total = 0
    for one, other in zip(a, b, strict=True):
        total += len(one) + len(other)
        if len(one) and len(other):
            overlap = box_iou(one, other) >= SAME
            paired += int(overlap.any(1).sum()) + int(overlap.any(0).sum())
    return paired / max(total, 1)


def main() -> None:
    """Export, compare, take turns, print and publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--most", type=int, default=72, help="pictures of the folder that are used")
    parser.add_argument("--dynamic", action="store_true")
    asked = parser.parse_args()
    pictures = [item.path for item in find(asked.pictures)][: asked.most]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        plan = Plan(size=SIZE, dynamic=asked.dynamic, layout="scores")
        print(export(network(asked.weights), file, plan, pictures[:2]).agreement)
        detector, theirs = Detector(file, SIZE, LIMITS), Theirs(file)
        shared = agreement(ours(file, pictures), theirs(pictures))
        print(f"{len(pictures)} pictures; {100 * shared:.1f} % of all boxes have a partner on the other side")
        samples = [in_turn(detector, theirs, pictures, turn) for turn in range(asked.rounds)]
    times = summarize(samples)
    count = len(pictures)
    data = {
        "pictures": count,
        "dynamic": asked.dynamic,
        "same_boxes": shared,
        "ultralytics_seconds": [sample[0] for sample in samples],
        "ours_seconds": [sample[1] for sample in samples],
        "ratio": times.ratio,
        "interval": (times.low, times.high),
    }
    headers = ("pictures", "same boxes", "ours, pictures/s", "ultralytics, pictures/s", "ours is faster by")
    rates = [f"{1e3 * count / milliseconds:.1f}" for milliseconds in (times.after, times.before)]
    row = (
        str(count),
        f"{100 * shared:.1f} %",
        *rates,
        f"{times.ratio:.2f}x ({times.low:.2f}-{times.high:.2f})",
    )
    publish("detect_end_to_end", headers, [row], data)


def in_turn(detector: Detector, theirs: Theirs, pictures: list[Path], turn: int) -> tuple[float, float]:
    """Seconds of theirs and of ours, one after the other; every second pair in the other order."""

    def ours_runs() -> None:
        for _result in detector.stream(pictures):
            pass

    runs: dict[str, Callable[[], object]] = {"theirs": lambda: theirs(pictures), "ours": ours_runs}
    spent = {}
    for name in list(runs)[:: 1 if turn % 2 else -1]:
        start = time.perf_counter()
        runs[name]()
        spent[name] = time.perf_counter() - start
    print(f"ours {spent['ours']:.2f} s, ultralytics {spent['theirs']:.2f} s")
    return spent["theirs"], spent["ours"]


if __name__ == "__main__":
    main()
