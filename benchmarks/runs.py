"""Trainings of detectors, network by network and seed by seed: each leaves one JSON file, and one that was broken off goes on."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from unbranch.detect import train
from unbranch.detect.files import replacing
from unbranch.detect.metrics import Metrics
from unbranch.detect.training import TrainResult
from unbranch.detect.training.settings import SETTINGS_FILE


@dataclass(frozen=True)
class Run:
    """One training: which network, on what, for how long, and where it is kept."""

    network: str
    seed: int
    epochs: int
    size: int
    batch: int
    data: Path
    out: Path

    @property
    def name(self) -> str:
        """Names its folder and its file."""
        return f"{self.network}-{self.size}px-{self.epochs}ep-seed{self.seed}"

    @property
    def file(self) -> Path:
        """What it found."""
        return self.out / f"{self.name}.json"


AnyRun = TypeVar("AnyRun", bound=Run)
Found = dict[str, Any]


def made(
    runs: Sequence[AnyRun],
    measure: Callable[[AnyRun], Mapping[str, Any]],
    table: Callable[[list[Found]], str],
) -> None:
    """Train what is not there yet, then print the table."""
    for run in runs:
        if run.file.exists():
            print(f"{run.name}: done before")
            continue
        print(f"{run.name}: training", flush=True)
        found = {**_about(run), **measure(run)}
        with replacing(run.file) as part:
            part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(table([found]), flush=True)
    print(table([json.loads(run.file.read_text()) for run in runs]))


def _about(run: Run) -> Found:
    """What was run, and where."""
    plain = {key: getattr(run, key) for key in ("network", "seed", "epochs", "size", "batch")}
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {**plain, **machine, "python": platform.python_version(), "torch": torch.__version__}


def trained(run: Run, **options: Any) -> TrainResult:
    """Ours, on the CPU, from its last epoch where it was broken off."""
    folder = run.out / run.name
    if (folder / SETTINGS_FILE).exists():
        return train(folder=folder, resume=True)
    own = dict[str, Any](epochs=run.epochs, size=run.size, batch=run.batch, seed=run.seed, patience=0)
    return train(run.data, "yolov5n", folder=folder, accelerator="cpu", **own, **options)


def measures(metrics: Metrics) -> Found:
    """What counts of the metrics."""
    return {"map50": metrics.map50, "map": metrics.map, "classes": metrics.to_dict()["classes"]}


def over_seeds(results: Sequence[Found], key: str) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of a figure for each network; no deviation of one run."""
    found = {}
    for network in dict.fromkeys(result["network"] for result in results):
        values = [result[key] for result in results if result["network"] == network]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        found[network] = statistics.fmean(values), spread
    return found
