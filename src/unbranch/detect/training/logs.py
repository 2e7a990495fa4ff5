"""What a training leaves to look at: pictures, figures, and TensorBoard's event files where asked for."""

import importlib.util
from pathlib import Path
from typing import Any

import lightning

from unbranch.detect.data.batches import Batch
from unbranch.detect.errors import InputError
from unbranch.detect.metrics import Metrics
from unbranch.detect.plots import (
    draw_batch,
    plot_confusion,
    plot_f1,
    plot_history,
    plot_labels,
    plot_precision_recall,
    save_figure,
    save_picture,
)
from unbranch.detect.training.checkpoints import training_module
from unbranch.detect.training.data_module import DetectionData
from unbranch.detect.training.history import History

LOGGED = ("box", "objectness", "class", "precision", "recall", "map50", "map", "lr")


class Pictures(lightning.Callback):
    """`labels.png` and `train_batch.jpg`, at the first batch of a training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Draw the very first batch and the labels of the whole split."""
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if (
            trainer.current_epoch
            or batch_idx
            or not trainer.is_global_zero
            or not isinstance(data, DetectionData)
        ):
            return
        save_picture(draw_batch(batch, data.train.names), self.folder / "train_batch.jpg")
        save_figure(plot_labels(data.train), self.folder / "labels.png")


class EventLog(lightning.Callback):
    """TensorBoard's event files, one point an epoch; a resumed training drops the points it makes again.

    Raises InputError where the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        require_tensorboard()
        self.folder = folder
        self.writer: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Open the event file."""
        from torch.utils.tensorboard import SummaryWriter

        if trainer.is_global_zero:
            self.writer = SummaryWriter(str(self.folder), purge_step=trainer.current_epoch + 1)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the epoch's losses and measures."""
        if self.writer is not None:
            row = training_module(pl_module).history.rows[-1]
            for name in LOGGED:
                if row[name] == row[name]:
                    self.writer.add_scalar(name, row[name], int(row["epoch"]))
            self.writer.flush()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Close the event file."""
        if self.writer is not None:
            self.writer.close()


def require_tensorboard() -> None:
    """Raise InputError where TensorBoard's event files cannot be written."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "tensorboard is asked for and not installed; pip install tensorboard, or leave it out"
        )


def write_figures(folder: Path, metrics: Metrics, history: History | None) -> None:
    """`precision_recall.png`, `f1.png`, `confusion.png`, and `losses.png` where there is a history."""
    if history is not None and history.rows:
        save_figure(plot_history(history.rows), folder / "losses.png")
    save_figure(plot_precision_recall(metrics), folder / "precision_recall.png")
    save_figure(plot_f1(metrics), folder / "f1.png")
    save_figure(plot_confusion(metrics), folder / "confusion.png")
