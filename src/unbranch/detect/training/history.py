"""What each epoch came to: kept in the checkpoint, so that a resumed training lacks nothing and repeats
nothing."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unbranch.detect.files import replacing
from unbranch.detect.metrics import Metrics

COLUMNS = (
    "epoch",
    "box",
    "objectness",
    "class",
    "precision",
    "recall",
    "map50",
    "map",
    "fitness",
    "lr",
    "seconds",
    "val_seconds",
)
RESULTS_FILE = "results.csv"


@dataclass
class History:
    """One row an epoch, epochs counted from 1; measures are NaN where an epoch was not validated.

    Example:
        >>> History().best_epoch
        0
    """

    rows: list[dict[str, float]] = field(default_factory=list)

    def note(
        self, epoch: int, losses: dict[str, float], metrics: Metrics | None, others: dict[str, float]
    ) -> None:
        """Add the row of `epoch` (counted from 0); rows from there on, of a life before, are dropped.

        others: `lr`, and the `seconds` that training and validating took (`val_seconds`).
        """
        names = ("precision", "recall", "map50", "map", "fitness")
        measures = {name: math.nan if metrics is None else float(getattr(metrics, name)) for name in names}
        self.rows = [*self.rows[:epoch], {"epoch": float(epoch + 1), **losses, **measures, **others}]

    @property
    def best_epoch(self) -> int:
        """The epoch with the greatest fitness, the first of equals; 0 where none was validated."""
        valid = [row for row in self.rows if not math.isnan(row["fitness"])]
        return int(max(valid, key=lambda row: (row["fitness"], -row["epoch"]))["epoch"]) if valid else 0

    @property
    def epochs(self) -> int:
        """How many epochs are done."""
        return len(self.rows)

    def stale(self, patience: int) -> bool:
        """Whether `patience` epochs have passed without a better one; never for 0."""
        return bool(patience and self.best_epoch and self.epochs - self.best_epoch >= patience)

    def to_list(self) -> list[dict[str, Any]]:
        """Plain data for a checkpoint."""
        return [dict(row) for row in self.rows]

    @classmethod
    def from_list(cls, rows: list[dict[str, Any]]) -> "History":
        """From what `to_list` gave."""
        return cls([dict(row) for row in rows])

    def write_csv(self, folder: Path) -> None:
        """Write the whole history to `results.csv`."""
        with replacing(folder / RESULTS_FILE) as part, part.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows({name: f"{row[name]:.6g}" for name in COLUMNS} for row in self.rows)
