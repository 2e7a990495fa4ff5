"""Blood cells from scratch: our YOLOv5n, the same with RepVGG in its C3, and ultralytics' yolov5n.yaml.

Each run (network, seed) writes one JSON file and is left out where that file is there, so a broken benchmark goes on
where it stopped; our own trainings go on from their last epoch. All networks are measured on the test split by one
evaluator (COCO's), each with its own usual suppression. Example:

    python -m benchmarks.bccd ../shared/data/bccd/BCCD --out runs/bccd --networks plain ultralytics --seeds 0 1 2
"""

import argparse
import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

import torch
from PIL import Image
from torch import Tensor

from benchmarks.runs import Run, made, measures, over_seeds, trained
from unbranch.detect import validate
from unbranch.detect.data import Report, open_spec
from unbranch.detect.validation import MEASURING, plain_table

OURS: dict[str, dict[str, Any]] = {
    "plain": {},
    "repvgg": {"block": "repvgg"},
    "plain-3x3": {"bottleneck": "3x3-3x3"},
    "repvgg-3x3": {"block": "repvgg", "bottleneck": "3x3-3x3"},
}
PEER = "ultralytics"
PEER_IOU = 0.7


def main() -> None:
    """Train what is not there yet, then print the table."""
    made(
        list(asked_for()),
        lambda run: with_ultralytics(run) if run.network == PEER else with_ours(run),
        summary,
    )


def asked_for() -> Iterator[Run]:
    """The runs of the command line, seed by seed, so that the networks go side by side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder BCCD, Pascal VOC")
    parser.add_argument("--out", type=Path, default=Path("runs/bccd"))
    parser.add_argument("--networks", nargs="+", choices=[*OURS, PEER], default=["plain", PEER, "repvgg"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    for seed in given.seeds:
        for network in given.networks:
            yield Run(
                network,
                seed,
                given.epochs,
                given.size,
                given.batch,
                given.data.absolute(),
                given.out.absolute(),
            )


def with_ours(run: Run) -> dict[str, Any]:
    """Train ours and measure it."""
    result = trained(run, network=OURS[run.network])
    rows = result.history.rows
    metrics = validate(result.best, run.data, "test", run.size, cache="ram").metrics
    return {
        **measures(metrics),
        "seconds_training": statistics.median(row["seconds"] for row in rows),
        "seconds_epoch": statistics.median(row["seconds"] + row["val_seconds"] for row in rows),
        "best_epoch": result.history.best_epoch,
    }


def with_ultralytics(run: Run) -> dict[str, Any]:
    """Train the peer with its own defaults, from its last epoch where it was broken off."""
    from ultralytics import YOLO

    threads = torch.get_num_threads()

    folder = run.out / run.name
    last, table = folder / "weights" / "last.pt", folder / "results.csv"
    broken = last.exists() and table.exists()
    model = YOLO(last) if broken else YOLO("yolov5n.yaml")
    marks: dict[str, list[float]] = {
        "on_train_epoch_start": [],
        "on_train_epoch_end": [],
        "on_fit_epoch_end": [],
    }
    for event, times in marks.items():
        model.add_callback(event, lambda _trainer, times=times: times.append(time.perf_counter()))
    # Left to itself it computes on one core less than there are; both get the same.
    model.add_callback("on_train_start", lambda _trainer: torch.set_num_threads(threads))
    options: dict[str, Any] = {"resume": True} if broken else {
        "data": str(as_yolo(run)), "epochs": run.epochs, "imgsz": run.size, "batch": run.batch, "seed": run.seed,
        "device": "cpu", "project": str(run.out), "name": run.name, "exist_ok": True, "pretrained": False,
        "plots": False, "verbose": False,
    }  # fmt: skip
    if not broken or len(table.read_text().splitlines()) <= run.epochs:
        model.train(**options)
    starts, trained, whole = marks.values()
    network = YOLO(folder / "weights" / "best.pt").model
    if not isinstance(network, torch.nn.Module):
        raise TypeError("ultralytics gave no module")
    network.float().eval()

    def predictions(images: Tensor) -> Tensor:
        boxes = network(images)[0].transpose(1, 2)
        return torch.cat((boxes[..., :4], torch.ones_like(boxes[..., :1]), boxes[..., 4:]), -1)

    limits = replace(MEASURING, iou=PEER_IOU)
    metrics = validate(predictions, run.data, "test", run.size, limits=limits, cache="ram").metrics
    return {
        **measures(metrics),
        "seconds_training": median_span(starts, trained),
        "seconds_epoch": median_span(starts, whole),
    }


def median_span(starts: list[float], ends: list[float]) -> float:
    """The median time from a start to its end; no number where all was done before. The last end is that of the
    best weights' validation, which starts no epoch."""
    spans = [end - start for start, end in zip(starts, ends, strict=False)]
    return statistics.median(spans) if spans else float("nan")


def as_yolo(run: Run) -> Path:
    """The same data, the same boxes, in the form that the peer reads."""
    root = run.out / "data"
    spec = open_spec(run.data)
    for split in spec.splits:
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        for entry in spec.entries(split, Report(split)):
            target = root / "images" / split / entry.path.name
            if not target.exists():
                shutil.copyfile(entry.path, target)
            with Image.open(entry.path) as picture:
                width, height = picture.size
            lines = []
            for box in entry.boxes:
                x1, y1, x2, y2 = box.corners
                if x2 > x1 and y2 > y1:
                    cx, cy, w, h = (
                        (x1 + x2) / 2 / width,
                        (y1 + y2) / 2 / height,
                        (x2 - x1) / width,
                        (y2 - y1) / height,
                    )
                    lines.append(f"{box.category} {cx:.6f} {cy:.6f} {w:.6f} {h:.6f}")
            (root / "labels" / split / f"{entry.path.stem}.txt").write_text("\n".join(lines))
    splits = "".join(f"{split}: images/{split}\n" for split in spec.splits)
    (root / "data.yaml").write_text(f"path: {root}\n{splits}names: {list(spec.names)}\n")
    return root / "data.yaml"


def summary(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds for each network, and the comparison with the peer."""
    map50, whole, training, epoch = (
        over_seeds(results, key) for key in ("map50", "map", "seconds_training", "seconds_epoch")
    )
    runs = Counter(result["network"] for result in results)
    rows: list[list[Any]] = [["network", "runs", "mAP50", "±", "mAP50-95", "±", "s training", "s epoch"]]
    rows += [[n, runs[n], *map50[n], *whole[n], training[n][0], epoch[n][0]] for n in map50]
    lines = [plain_table(rows)]
    for network in map50.keys() - {PEER} if PEER in map50 else ():
        (mean, spread), (peer, peer_spread) = map50[network], map50[PEER]
        pooled = ((spread**2 + peer_spread**2) / 2) ** 0.5
        lines.append(
            f"{network} against {PEER}: mAP50 {mean - peer:+.3f} (one pooled standard deviation is {pooled:.3f}), "
            f"{epoch[network][0] / epoch[PEER][0]:.2f} of its seconds an epoch"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
