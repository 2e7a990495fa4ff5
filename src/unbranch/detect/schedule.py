"""Optimizer, learning rate and accumulation as functions of the batch that is trained: nothing to restore."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from unbranch.detect.recipe import Recipe
from unbranch.expand import Expanded

NOMINAL_BATCH = 64
MANY_STEPS = 10_000
"""Optimizer steps from which SGD has the time it needs."""


@dataclass(frozen=True)
class Plan:
    """How one training runs: `steps` batches an epoch, `epochs` of them, `batch` pictures each.

    fresh: the weights start from noise.

    Example:
        >>> plan = Plan(steps=100, epochs=300, batch=16, recipe=Recipe())
        >>> plan.optimizer, plan.nominal, plan.at(20_000).accumulate
        ('sgd', 64, 4)
    """

    steps: int
    epochs: int
    batch: int
    recipe: Recipe
    fresh: bool = True

    @property
    def optimizer(self) -> str:
        """SGD where 64-picture steps are many, AdamW where a training is too short for it."""
        if self.recipe.optimizer != "auto":
            return self.recipe.optimizer
        whole = self.steps * self.epochs * self.batch / NOMINAL_BATCH
        return "sgd" if whole >= MANY_STEPS else "adamw"

    @property
    def nominal(self) -> int:
        """Pictures in an optimizer step: small batches are accumulated to it. AdamW steps at every batch."""
        if self.recipe.nominal_batch is not None:
            return self.recipe.nominal_batch
        return NOMINAL_BATCH if self.optimizer == "sgd" else self.batch

    @property
    def lr(self) -> float:
        """The highest learning rate: SGD's 0.01; AdamW's 0.001 for trained weights.

        For fresh weights AdamW's is 0.002 · √(10,000 / steps), 0.008 at most: the fewer steps there are, the
        longer each must be (measured on short trainings from scratch).
        """
        if self.recipe.lr is not None:
            return self.recipe.lr
        if self.optimizer == "sgd":
            return 0.01
        if not self.fresh:
            return 0.001
        return 0.002 * min(math.sqrt(MANY_STEPS / (self.steps * self.epochs)), 4.0)

    @property
    def warmup(self) -> int:
        """Batches of warm-up: the recipe's epochs of it, but at most a fifth of the training."""
        return round(min(self.recipe.warmup_epochs * self.steps, 0.2 * self.steps * self.epochs))

    @property
    def weight_decay(self) -> float:
        """The recipe's decay is for a step of 64 pictures; a step of more gets more, of fewer less."""
        accumulate = max(round(self.nominal / self.batch), 1)
        return self.recipe.weight_decay * self.batch * accumulate / NOMINAL_BATCH

    @property
    def plain_from(self) -> int:
        """The first epoch without mosaic."""
        return self.epochs - round(self.recipe.mosaic_off * self.epochs)

    def at(self, step: int) -> "Rates":
        """The rates of the batch with that number, counted from 0 over the whole training.

        After warm-up lr · (f + (1 - f) · (1 + cos(π · t)) / 2) with t from 0 to 1 and f = `final_lr`. During
        warm-up all rates go linearly from 0 (biases from `warmup_bias_lr`) to that, momentum and accumulation
        to theirs.
        """
        recipe = self.recipe
        done = step / (self.steps * self.epochs)
        lr = self.lr * (recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * done)) / 2)
        accumulate = max(self.nominal / self.batch, 1.0)
        if step >= self.warmup:
            return Rates(lr, lr, recipe.momentum, round(accumulate))
        part = step / self.warmup
        bias_from = recipe.warmup_bias_lr if self.optimizer == "sgd" else 0.0
        return Rates(
            lr=lr * part,
            bias_lr=bias_from + (lr - bias_from) * part,
            momentum=recipe.warmup_momentum + (recipe.momentum - recipe.warmup_momentum) * part,
            accumulate=max(round(1 + (accumulate - 1) * part), 1),
        )


class Rates(NamedTuple):
    """What the optimizer runs with for one batch; `accumulate` batches make a step."""

    lr: float
    bias_lr: float
    momentum: float
    accumulate: int


def make_optimizer(network: nn.Module, plan: Plan) -> Optimizer:
    """SGD with Nesterov momentum, or AdamW, in groups: weights that decay, norms, biases, and the same of branches that
    `expand` added, whose rate is the recipe's `branch_lr` times the others'.

    All tensors of a group step together, which on a processor, too, is several times faster than one by one.
    """
    added = {
        id(p) for layer in network.modules() if isinstance(layer, Expanded) for p in layer.new_parameters()
    }
    sorted_by: dict[tuple[bool, str], list[nn.Parameter]] = {
        (new, kind): [] for new in (False, True) for kind in ("weights", "norms", "biases")
    }
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_norm = isinstance(module, _BatchNorm) or parameter.ndim < 2
            kind = "biases" if name == "bias" else "norms" if is_norm else "weights"
            sorted_by[id(parameter) in added, kind].append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "weight_decay": plan.weight_decay if kind == "weights" else 0.0,
            "kind": kind,
            "factor": plan.recipe.branch_lr if new else 1.0,
        }
        for (new, kind), parameters in sorted_by.items()
        if parameters
    ]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=plan.recipe.momentum, nesterov=True, foreach=True)
    return torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.999), foreach=True)


def set_rates(optimizer: Optimizer, rates: Rates) -> None:
    """Put the rates of a batch into the optimizer's groups."""
    for group in optimizer.param_groups:
        lr = rates.bias_lr if group["kind"] == "biases" else rates.lr
        group["lr"] = lr * group["factor"]
        if "momentum" in group:
            group["momentum"] = rates.momentum
