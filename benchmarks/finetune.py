"""Blood cells from trained weights: YOLOv5n as it is, and with branches in its C3 blocks, deployed at the same cost.

Both start from the same COCO weights and are trained alike; the expanded one learns with branches (`unbranch expand`) and is folded
before it is measured. Each run (network, seed) writes one JSON file and is left out where that file is there; a broken training goes
on from its last epoch. Example:

    python -m benchmarks.finetune ../shared/data/bccd/BCCD ../shared/data/yolov5n/yolov5n.pt --out runs/finetune --seeds 0 1 2
"""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.runs import Run, made, measures, over_seeds, trained
from unbranch.detect import import_original, load_model, save, validate
from unbranch.detect.validation import plain_table
from unbranch.expand import RECIPES

WHERE = "*.bottlenecks.*second*"
PLAIN = "plain"
BATCH = 16


@dataclass(frozen=True)
class FineTuning(Run):
    """`network` is the recipe of its branches, or plain; ``start`` the weights that all begin with."""

    start: Path


def main() -> None:
    """Train what is not there yet, then print the table."""
    made(list(asked_for()), measured, summary)


def asked_for() -> Iterator[FineTuning]:
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
            yield FineTuning(
                recipe, seed, given.epochs, given.size, BATCH, given.data.absolute(), out, start=start
            )


def measured(run: FineTuning) -> dict[str, Any]:
    """Train, from the last epoch where it was broken off, and measure the folded network on the test split."""
    branches = {} if run.network == PLAIN else {"expand": run.network, "where": WHERE}
    result = trained(run, weights=str(run.start), **branches)
    metrics = validate(result.best, run.data, "test", run.size, cache="ram").metrics
    trained_network = load_model(result.best)
    learnt = sum(p.numel() for p in trained_network.parameters())
    deployed = {name: list(value.shape) for name, value in trained_network.fuse().state_dict().items()}
    rows = result.history.rows
    return {
        **measures(metrics),
        "parameters_in_training": learnt,
        "parameters_deployed": sum(p.numel() for p in trained_network.parameters()),
        "deployed": deployed,
        "seconds_training": statistics.median(row["seconds"] for row in rows),
        "best_epoch": result.history.best_epoch,
    }


def summary(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds for each network.

    Raises ValueError where the networks differ in deploy form.
    """
    if any(result["deployed"] != results[0]["deployed"] for result in results):
        raise ValueError("the networks are not the same once folded")
    rows: list[list[Any]] = [
        ["network", "seeds", "mAP50", "±", "mAP50-95", "±", "parameters", "deployed", "s training"]
    ]
    map50, whole, seconds = (over_seeds(results, key) for key in ("map50", "map", "seconds_training"))
    for recipe in map50:
        own = [result for result in results if result["network"] == recipe]
        counts = [f"{own[0][key]:,}" for key in ("parameters_in_training", "parameters_deployed")]
        rows.append([recipe, len(own), *map50[recipe], *whole[recipe], *counts, f"{seconds[recipe][0]:.1f}"])
    return plain_table(rows)


if __name__ == "__main__":
    main()
