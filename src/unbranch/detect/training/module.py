"""One training step, one validation, and the state that they keep, as a LightningModule."""

import time
from collections.abc import Mapping
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from unbranch.detect.data.batches import Batch, EvaluationBatch
from unbranch.detect.data.check import Split
from unbranch.detect.ema import Average
from unbranch.detect.errors import InputError
from unbranch.detect.loss import DetectionLoss, scaled_gains
from unbranch.detect.metrics import Metrics, evaluate
from unbranch.detect.schedule import Plan, Rates, make_optimizer, set_rates
from unbranch.detect.training.history import History
from unbranch.detect.validation import MEASURING, found_in, in_order, network_images
from unbranch.models.yolo import YOLO

KEY = "unbranch"


class DetectionModule(lightning.LightningModule):
    """A detector in training: `network` learns, `average` is validated and kept.

    plan: the schedule; seed: what any random layer of the network draws from, anew for each batch; measured:
    the split of the validation batches. Optimization is by hand, so that batches can be accumulated as the
    schedule asks. `about` is plain data kept in checkpoints.
    """

    def __init__(
        self,
        network: YOLO[Any],
        plan: Plan,
        size: int,
        seed: int,
        measured: Split | None = None,
        freeze_norms: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network.to(memory_format=torch.channels_last)
        self.average = Average(network, plan.recipe.ema_decay, plan.recipe.ema_ramp)
        self.plan, self.seed, self.measured, self.size = plan, seed, measured, size
        self.freeze_norms, self.about = freeze_norms, dict(about or {})
        self.history = History()
        self.metrics: Metrics | None = None
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.waiting = 0
        self._found: dict[int, Tensor] = {}
        self._began = self._trained = time.perf_counter()
        if freeze_norms:
            for norm in norms_of(network):
                norm.requires_grad_(False)

    def configure_optimizers(self) -> Optimizer:
        """One optimizer with three groups; its rates are set for each batch."""
        return make_optimizer(self.network, self.plan)

    def on_fit_start(self) -> None:
        """The loss, once it is known how many processes share it."""
        head, recipe = self.network.detect, self.plan.recipe
        gains = scaled_gains(recipe, head.num_classes, len(head.strides), self.size)
        ranks = self.trainer.world_size
        self.loss = DetectionLoss(
            head.anchors,
            head.strides,
            gains,
            recipe.anchor_threshold,
            ranks,
            _sum_over_ranks if ranks > 1 else torch.clone,
        )

    def on_train_epoch_start(self) -> None:
        """Nothing is carried over from the epoch before."""
        self._began = time.perf_counter()
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.waiting = 0
        self.metrics = None
        if self.freeze_norms:
            for norm in norms_of(self.network):
                norm.eval()

    def training_step(self, batch: Batch, index: int) -> None:
        """Forward, loss, backward, and an optimizer step where enough pictures have been seen."""
        if batch.key.epoch != self.current_epoch:
            raise RuntimeError(f"a batch of epoch {batch.key.epoch} in epoch {self.current_epoch}")
        number = self.current_epoch * self.plan.steps + index
        torch.manual_seed(hash((self.seed, number, self.global_rank)) & 0x7FFF_FFFF)
        rates = self.plan.at(number)
        images, targets = resized(network_images(batch.images, self.device), batch.targets, batch.key.size)
        losses = self.loss(self.network(images), targets)
        self.manual_backward(losses.total)
        self.sums += torch.cat((losses.parts.double().cpu(), torch.ones(1, dtype=torch.float64)))
        self.waiting += 1
        if self.waiting >= rates.accumulate or index + 1 == self.plan.steps:
            self._step(rates)

    def _step(self, rates: Rates) -> None:
        optimizer = self.optimizers()
        if not isinstance(optimizer, LightningOptimizer):
            raise TypeError("one optimizer is expected")
        set_rates(optimizer.optimizer, rates)
        optimizer.step()
        optimizer.zero_grad()
        self.waiting = 0
        if self.trainer.world_size > 1 and not self.freeze_norms:
            average_statistics(self.network)
        self.average.update(self.network)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient's norm, after any loss scale has been taken out."""
        nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.recipe.clip)

    def on_validation_epoch_start(self) -> None:
        """Forget what was found before."""
        self._found = {}
        self._trained = time.perf_counter()

    def validation_step(self, batch: EvaluationBatch, index: int) -> None:
        """Detect with the average, in single precision."""
        images = network_images(batch.images, self.device)
        with torch.autocast(self.device.type, enabled=False):
            predictions = self.average.network(images)
        self._found.update(found_in(batch, predictions, MEASURING))

    def on_validation_epoch_end(self) -> None:
        """Measure what all ranks found; each rank comes to the same numbers."""
        if self.measured is not None:
            found = _gathered(self._found) if self.trainer.world_size > 1 else self._found
            self.metrics = evaluate(in_order(found, len(self.measured)), self.measured)

    def note_epoch(self) -> None:
        """Add the epoch that ends to the history. Raises InputError where its loss is no number."""
        box, objectness, classes, batches = self._summed().tolist()
        losses = {"box": box / batches, "objectness": objectness / batches, "class": classes / batches}
        if not all(value == value and abs(value) < float("inf") for value in losses.values()):
            raise InputError(
                f"epoch {self.current_epoch + 1}: the loss is not a number; "
                "train with a lower recipe lr, or in precision 32"
            )
        now = time.perf_counter()
        trained = now if self.metrics is None else self._trained
        others = {
            "lr": self.plan.at((self.current_epoch + 1) * self.plan.steps - 1).lr,
            "seconds": trained - self._began,
            "val_seconds": now - trained,
        }
        self.history.note(self.current_epoch, losses, self.metrics, others)

    def _summed(self) -> Tensor:
        return (
            _sum_over_ranks(self.sums) / self.trainer.world_size if self.trainer.world_size > 1 else self.sums
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is ours: plain data only."""
        checkpoint[KEY] = {"history": self.history.to_list(), **self.about}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up where it was left."""
        self.history = History.from_list(checkpoint[KEY]["history"])


def norms_of(network: nn.Module) -> list[_BatchNorm]:
    """Every batch norm of a network."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def resized(images: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Batch and boxes at another size, for multi-scale training: square, bilinear.

    Example:
        >>> resized(torch.zeros(1, 3, 64, 64), torch.ones(1, 6), 32)[1].tolist()
        [[1.0, 1.0, 0.5, 0.5, 0.5, 0.5]]
    """
    if images.shape[-1] == size:
        return images, targets
    scale = size / images.shape[-1]
    smaller = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return smaller, targets * targets.new_tensor([1, 1, scale, scale, scale, scale])


@torch.no_grad()
def average_statistics(network: nn.Module) -> None:
    """Give all ranks the mean of their norms' statistics, in one exchange."""
    buffers = [b for norm in norms_of(network) for b in norm.buffers() if b.is_floating_point()]
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def _sum_over_ranks(values: Tensor) -> Tensor:
    summed = values.clone()
    dist.all_reduce(summed)
    return summed


def _gathered(found: dict[int, Tensor]) -> dict[int, Tensor]:
    parts: list[dict[int, Tensor]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, found)
    return {index: rows for part in parts for index, rows in part.items()}
