"""Blood cells from trained weights: YOLOv5n as it is, and with branches in its C3 blocks, deployed at the same cost.

Both start from the same COCO weights and are trained alike; the expanded one learns with branches (`unbranch expand`) and is folded
before it is measured. Each run (network, seed) writes one JSON file and is left out where that file is there; a broken training goes
on from its last epoch. Example:

    python -m benchmarks.finetune ../shared/data/bccd/BCCD ../shared/data/yolov5n/yolov5n.pt --out runs/finetune --seeds 0 1 2
"""

import argparse
import json
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unbranch.detect import import_original, load_model, save, train, validate
from unbranch.detect.files import replacing
from unbranch.detect.training.settings import SETTINGS_FILE
from unbranch.detect.validation import plain_table
from unbranch.expand import RECIPES

WHERE = "*.bottlenecks.*second*"
PLAIN = "plain"


@dataclass(frozen=True)
class Run:
    """One training: which branches, and from which seed."""

    recipe: str
    seed: int
    epochs: int
    size: int
    data: Path
    start: Path
    out: Path

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return self.out / f"{self.recipe}-{self.size}px-{self.epochs}ep-seed{self.seed}"

    @property
    def file(self) -> Path:
        """What it found."""
        return self.folder.with_suffix(".json")


def main() -> None:
    """Train what is not there yet, then print the table."""
    runs = list(asked_for())
    for run in runs:
        if run.file.exists():
            print(f"{run.folder.name}: done before")
            continue
        print(f"{run.folder.name}: training", flush=True)
        found = measured(run)
        with replacing(run.file) as part:
            part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(plain_table(summary([found])), flush=True)
    print(plain_table(summary([json.loads(run.file.read_text()) for run in runs])))


def asked_for() -> Iterator[Run]:
    """The runs of the command line, seed by seed, so that the networks go side by side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder BCCD, Pascal VOC")
    parser.add_argument("weights", type=Path, help="an original YOLOv5 checkpoint")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--recipes", nargs="+", choices=[PLAIN, *RECIPES], default=[PLAIN, "repvgg"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--size", type=int, default=320)
    given = parser.parse_args()
    out = given.out.absolute()
    start = out / "start.safetensors"
    if not start.exists():
        save(import_original(given.weights), start)
    for seed in given.seeds:
        for recipe in given.recipes:
            yield Run(recipe, seed, given.epochs, given.size, given.data.absolute(), start, out)


def measured(run: Run) -> dict[str, Any]:
    """Train, from the last epoch where it was broken off, and measure the folded network on the test split."""
    if (run.folder / SETTINGS_FILE).exists():
        result = train(folder=run.folder, resume=True)
    else:
        options = dict[str, Any](epochs=run.epochs, size=run.size, batch=16, seed=run.seed, patience=0)
        options |= {"accelerator": "cpu", "weights": str(run.start)}
        if run.recipe != PLAIN:
            options |= {"expand": run.recipe, "where": WHERE}
        result = train(run.data, "yolov5n", folder=run.folder, **options)
    metrics = validate(result.best, run.data, "test", run.size, cache="ram").metrics
    trained = load_model(result.best)
    learnt = sum(p.numel() for p in trained.parameters())
    deployed = {name: list(value.shape) for name, value in trained.fuse().state_dict().items()}
    rows = result.history.rows
    return {
        "recipe": run.recipe,
        "seed": run.seed,
        "epochs": run.epochs,
        "size": run.size,
        "map50": metrics.map50,
        "map": metrics.map,
        "classes": metrics.to_dict()["classes"],
        "parameters_in_training": learnt,
        "parameters_deployed": sum(p.numel() for p in trained.parameters()),
        "deployed": deployed,
        "seconds_training": statistics.median(row["seconds"] for row in rows),
        "best_epoch": result.history.best_epoch,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def summary(results: list[dict[str, Any]]) -> list[list[Any]]:
    """Mean and standard deviation over the seeds for each network.

    Raises ValueError where the networks differ in deploy form.
    """
    if any(result["deployed"] != results[0]["deployed"] for result in results):
        raise ValueError("the networks are not the same once folded")
    rows: list[list[Any]] = [
        ["network", "seeds", "mAP50", "±", "mAP50-95", "±", "parameters", "deployed", "s training"]
    ]
    for recipe in dict.fromkeys(result["recipe"] for result in results):
        own = [result for result in results if result["recipe"] == recipe]
        cells: list[Any] = []
        for key in ("map50", "map"):
            values = [result[key] for result in own]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells += [statistics.fmean(values), spread]
        counts = [f"{own[0][key]:,}" for key in ("parameters_in_training", "parameters_deployed")]
        seconds = statistics.fmean(result["seconds_training"] for result in own)
        rows.append([recipe, len(own), *cells, *counts, f"{seconds:.1f}"])
    return rows


if __name__ == "__main__":
    main()
