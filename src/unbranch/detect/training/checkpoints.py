"""What is kept of a training: `last.ckpt` to go on from, `best.safetensors` and `last.safetensors` to use."""

import io
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from unbranch.detect.checkpoint import save
from unbranch.detect.errors import InputError
from unbranch.detect.files import replacing
from unbranch.detect.training.module import KEY, DetectionModule

NETWORK = "network."
LAST, BEST_WEIGHTS, LAST_WEIGHTS = "last.ckpt", "best.safetensors", "last.safetensors"


class WholeFiles(CheckpointIO):
    """Checkpoints that appear whole or not at all, and that hold nothing but plain data and tensors."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Written to memory first, so that a full disk is an error of the file and not of the pickler."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with replacing(Path(path)) as part:
            part.write_bytes(content.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Tensors and plain data; nothing in the file is run."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Nothing of ours is removed by Lightning."""
        raise RuntimeError(f"{path} is to stay")


class Keep(lightning.Callback):
    """After each epoch: results.csv, the weights where they are the best, and last of all `last.ckpt`.

    In that order a kill at any moment leaves a `last.ckpt` whose epoch's files are there. Ends the training
    where `patience` epochs brought nothing better. Only the first rank writes.
    """

    def __init__(self, folder: Path, patience: int) -> None:
        self.folder, self.patience = folder, patience

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note the epoch and write its files; see the class."""
        module = training_module(pl_module)
        module.note_epoch()
        history, network = module.history, module.average.network
        extra = {**module.about, "epoch": history.epochs}
        if trainer.is_global_zero:
            history.write_csv(self.folder)
            if history.best_epoch in (0, history.epochs):
                save(network, self.folder / BEST_WEIGHTS, extra)
            save(network, self.folder / LAST_WEIGHTS, extra)
        trainer.save_checkpoint(self.folder / LAST)
        trainer.should_stop = trainer.should_stop or history.stale(self.patience)


def training_module(module: lightning.LightningModule) -> DetectionModule:
    """The module, known to be ours."""
    if not isinstance(module, DetectionModule):
        raise TypeError(f"{type(module).__name__} is no DetectionModule")
    return module


def read_last(folder: Path) -> dict[str, Any] | None:
    """Our part of `last.ckpt` in `folder`, None where no epoch was finished. Raises InputError where it is
    damaged."""
    return _part(folder, KEY) if (folder / LAST).is_file() else None


def read_network(folder: Path) -> dict[str, Tensor]:
    """The tensors of the network in `last.ckpt`, by their own names. Raises InputError where it is damaged."""
    state = _part(folder, "state_dict")
    return {name.removeprefix(NETWORK): value for name, value in state.items() if name.startswith(NETWORK)}


def _part(folder: Path, key: str) -> dict[str, Any]:
    file = folder / LAST
    try:
        return WholeFiles().load_checkpoint(file)[key]
    except (RuntimeError, ValueError, KeyError, EOFError, OSError) as error:
        raise InputError(
            f"{file} is damaged ({' '.join(str(error).split())[:120]}); start the training anew"
        ) from error
