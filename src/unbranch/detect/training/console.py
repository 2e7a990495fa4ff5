"""What a person sees while training: a live table and a bar in a terminal, plain lines elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
from rich.console import Console as Terminal
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from unbranch.detect.data.check import Progress as CheckProgress
from unbranch.detect.metrics import Metrics
from unbranch.detect.training.checkpoints import training_module

SHOWN = {
    "epoch": "epoch", "box": "box", "objectness": "objectness", "class": "class", "precision": "precision",
    "recall": "recall", "map50": "mAP50", "map": "mAP50-95", "seconds": "seconds",
}  # fmt: skip
ROWS = 12


class Narrator:
    """Says things on the terminal, or nothing where `quiet`."""

    def __init__(self, quiet: bool = False, terminal: Terminal | None = None) -> None:
        self.terminal = terminal or Terminal(quiet=quiet)
        self.quiet = quiet

    def say(self, *lines: str) -> None:
        """Print lines as they are."""
        for line in lines:
            self.terminal.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[CheckProgress]:
        """A bar for reading the data; gives the function that moves it."""
        with _bar(self.terminal) as bar:
            tasks: dict[str, Any] = {}

            def move(split: str, done: int, total: int) -> None:
                if split not in tasks:
                    tasks[split] = bar.add_task(f"reading {split}", total=total)
                bar.update(tasks[split], completed=done)

            yield move

    def table(self, metrics: Metrics) -> None:
        """The measures of every class and their means."""
        table = Table("class", "boxes", "precision", "recall", "mAP50", "mAP50-95")
        means = (metrics.precision, metrics.recall, metrics.map50, metrics.map)
        table.add_row(
            "all", str(sum(one.boxes for one in metrics.classes)), *(f"{mean:.3f}" for mean in means)
        )
        for one in metrics.classes:
            values = (one.precision, one.recall, one.map50, one.map)
            table.add_row(one.name, str(one.boxes), *(f"{value:.3f}" for value in values))
        self.terminal.print(table)


def _bar(terminal: Terminal, transient: bool = True) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=terminal, transient=transient, disable=not terminal.is_terminal,
    )  # fmt: skip


class Console(lightning.Callback):
    """The table of the epochs and the bar of the running one."""

    def __init__(self, narrator: Narrator) -> None:
        self.narrator = narrator
        self.bar = _bar(narrator.terminal)
        self.live: Live | None = None
        self.task: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Open the table."""
        if self.narrator.terminal.is_terminal:
            self.task = self.bar.add_task("")
            self.live = Live(self._table(pl_module), console=self.narrator.terminal, refresh_per_second=4)
            self.live.start()
        else:
            self.narrator.say("  ".join(f"{title:>10}" for title in SHOWN.values()))

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Set the bar back."""
        if self.live is not None:
            total = training_module(pl_module).plan.steps
            text = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
            self.bar.reset(self.task, total=total, description=text)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar and show the mean losses so far."""
        if self.live is not None:
            box, objectness, classes, batches = training_module(pl_module).sums.tolist()
            text = (
                f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}  box {box / batches:.3f}  "
                f"objectness {objectness / batches:.3f}  class {classes / batches:.3f}"
            )
            self.bar.update(self.task, completed=batch_idx + 1, description=text)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Add the epoch's row."""
        if self.live is not None:
            self.live.update(self._table(pl_module))
        else:
            row = training_module(pl_module).history.rows[-1]
            self.narrator.say("  ".join(f"{_cell(name, row[name]):>10}" for name in SHOWN))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Close the table."""
        self._close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Close the table, so that the error stands below it."""
        self._close()

    def _close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _table(self, module: lightning.LightningModule) -> Group:
        history = training_module(module).history
        table = Table(*SHOWN.values())
        for row in history.rows[-ROWS:]:
            style = "bold" if row["epoch"] == history.best_epoch else None
            table.add_row(*(_cell(name, row[name]) for name in SHOWN), style=style)
        return Group(table, self.bar)


def _cell(name: str, value: float) -> str:
    if name == "epoch":
        return f"{value:.0f}"
    return f"{value:.1f}" if name == "seconds" else f"{value:.4f}"
