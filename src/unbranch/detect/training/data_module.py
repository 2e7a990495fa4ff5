"""The batches of a training, for each rank its own, as a LightningDataModule."""

import os

import cv2
import lightning
import torch
from torch.utils.data import DataLoader

from unbranch.detect.data.batches import Batch, EvaluationBatch, EvaluationSet, TrainingKeys, TrainingSet
from unbranch.detect.data.check import Split
from unbranch.detect.data.pictures import InMemory
from unbranch.detect.schedule import Plan


class DetectionData(lightning.LightningDataModule):
    """Training batches of one split and validation batches of another.

    first_epoch: the epoch that training starts with, more than 0 where it resumes. workers: processes that
    make batches, for each rank.
    """

    def __init__(
        self,
        train: Split,
        val: Split,
        plan: Plan,
        seed: int,
        stride: int = 32,
        workers: int = 0,
        first_epoch: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.val, self.plan, self.seed = train, val, plan, seed
        self.stride, self.workers, self.first_epoch = stride, workers, first_epoch

    def train_dataloader(self) -> DataLoader:
        """Batches of this rank; Lightning tells the sampler each epoch."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        keys = TrainingKeys(
            len(self.train), self.plan.batch, self.train.size, self.seed, rank, ranks,
            self.plan.recipe.multi_scale, self.stride,
        )  # fmt: skip
        keys.set_epoch(self.first_epoch)
        made = TrainingSet(self.train, self.plan.recipe, self.seed, self.plan.plain_from)
        return self._loader(made, keys)

    def val_dataloader(self) -> DataLoader:
        """Batches of this rank, twice as large: nothing is kept for a backward pass."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return self._loader(
            EvaluationSet(self.val, 2 * self.plan.batch, self.stride, True, rank, ranks), None
        )

    def transfer_batch_to_device(
        self, batch: Batch | EvaluationBatch, device: torch.device, dataloader_idx: int
    ) -> Batch | EvaluationBatch:
        """Pictures travel as bytes; all else of an evaluation batch stays where it is."""
        moved = batch._replace(images=batch.images.to(device, non_blocking=True))
        return moved._replace(targets=moved.targets.to(device)) if isinstance(moved, Batch) else moved

    def _loader(self, made: TrainingSet | EvaluationSet, keys: TrainingKeys | None) -> DataLoader:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            made,
            batch_size=None,
            sampler=keys,
            num_workers=self.workers,
            pin_memory=on_gpu,  # and not on the CPU of a machine that has a GPU too
            persistent_workers=self.workers > 0,
            worker_init_fn=_alone,
        )


def _alone(_worker: int) -> None:
    """A worker is one of many: it keeps to one core."""
    cv2.setNumThreads(0)


def suitable_workers(split: Split, device: str, ranks: int) -> int:
    """None where the processor trains anyway and pictures are in memory; otherwise what the cores allow, 8 at
    most."""
    if device == "cpu" and isinstance(split.held[0], InMemory):
        return 0
    return max(min((os.cpu_count() or 1) // ranks - (device == "cpu"), 8), 0)
