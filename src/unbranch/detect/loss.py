"""YOLOv5's loss: CIoU of the matched boxes, objectness of every cell, class of the matched boxes.

With k matches in a level, c cells and N pictures, over all ranks:

    loss = N · Σ_levels [ box · mean_k (1 - CIoU) + objectness · balance · mean_c BCE(o, CIoU⁺) + classes ·
    mean_k BCE(class) ]

A cell's objectness is taught the CIoU of the box it predicts, 0 where it has no match, the greatest where it
has several. Sources: YOLOv5, release 6; CIoU: Zheng et al., Distance-IoU loss, AAAI 2020.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from unbranch.detect.assign import Matches, assign
from unbranch.detect.errors import InputError
from unbranch.detect.nms import corners
from unbranch.detect.recipe import Recipe

Reduce = Callable[[Tensor], Tensor]


class Gains(NamedTuple):
    """The weights of the three parts for one network and picture size; objectness has one a level."""

    box: float
    objectness: tuple[float, ...]
    classes: float


BALANCE = {3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06)}
"""How much each level's objectness weighs: small objects, which most cells look for, most."""


AUXILIARY = 0.25
"""How much an auxiliary level weighs beside the level of its stride."""


TINY = 1e-9
"""Pixels, or their square, below which a box has no shape."""


class Losses(NamedTuple):
    """`total` is what is minimised, for all pictures of the batch; the parts are its shares a picture,
    detached."""

    total: Float[Tensor, ""]
    parts: Float[Tensor, "3"]


def scaled_gains(recipe: Recipe, num_classes: int, levels: int, size: int) -> Gains:
    """The recipe's gains, which are for 80 classes, 3 levels and 640 pixels, for this network.

    Raises InputError where the recipe's own `balance` has not one number a level.

    Example:
        >>> scaled_gains(Recipe(), 80, 3, 640)
        Gains(box=0.05, objectness=(4.0, 1.0, 0.4), classes=0.5)
    """
    balance = BALANCE[levels] if recipe.balance is None else recipe.balance
    if len(balance) != levels:
        raise InputError(
            f"recipe: balance has {len(balance)} numbers, the network {levels} levels; give one a level"
        )
    objectness = recipe.objectness * (size / 640) ** 2 * 3 / levels
    return Gains(
        box=recipe.box * 3 / levels,
        objectness=tuple(objectness * weight for weight in balance),
        classes=recipe.classes * num_classes / 80 * 3 / levels,
    )


@dataclass(frozen=True)
class DetectionLoss:
    """The loss of raw maps against targets.

    anchors: (levels, a, 2) pixels; strides: (levels,) pixels. With `ranks` processes, `reduce` sums a tensor
    over them: each part is then divided by what all ranks have, and multiplied by `ranks`, so that gradients
    averaged over the ranks are those of one process with the whole batch.

    Maps beyond the levels are auxiliary ones (YOLOv7's): the same strides and anchors again, at a quarter of
    the weight. The assignment is YOLOv5's for them too, not the YOLOv7 paper's, in which the head's own
    predictions choose.

    Example:
        >>> gains = Gains(0.05, (4.0,), 0.5)
        >>> loss = DetectionLoss(torch.tensor([[[10.0, 13.0]]]), torch.tensor([8.0]), gains)
        >>> loss([torch.zeros(1, 1, 8, 8, 6)], torch.zeros(0, 6)).parts[0]
        tensor(0.)
    """

    anchors: Float[Tensor, "levels a 2"]
    strides: Float[Tensor, " levels"]
    gains: Gains
    threshold: float = 4.0
    ranks: int = 1
    reduce: Reduce = torch.clone

    def __call__(self, maps: Sequence[Tensor], targets: Float[Tensor, "m 6"]) -> Losses:
        """maps: each (n, a, rows, columns, 5 + classes) logits. targets: (picture, class, x, y, w, h) in
        pixels."""
        of_map = [i % len(self.anchors) for i in range(len(maps))]
        matched = [
            assign(targets, self.anchors[level], float(self.strides[level]), raw.shape[2:4], self.threshold)
            for level, raw in zip(of_map, maps, strict=True)
        ]
        own = [maps[0].shape[0], *(len(m.target) for m in matched), *(raw[..., 0].numel() for raw in maps)]
        pictures, *counts = self.reduce(torch.tensor(own, device=targets.device)).tolist()
        matches, cells = counts[: len(maps)], counts[len(maps) :]
        levels = zip(of_map, maps, matched, matches, cells, strict=True)
        each = torch.stack([self._level(level, raw, at, targets, k, c) for level, raw, at, k, c in levels])
        parts = each[: len(self.anchors)].sum(0) + AUXILIARY * each[len(self.anchors) :].sum(0)
        return Losses(parts.sum() * pictures * self.ranks, parts.detach() * self.ranks)

    def _level(
        self, level: int, logits: Tensor, at: Matches, targets: Tensor, matches: int, cells: int
    ) -> Float[Tensor, "3"]:
        """At least in single precision, whatever the network computed in."""
        raw = logits.to(torch.promote_types(logits.dtype, torch.float32))
        taught = torch.zeros_like(raw[..., 4])
        box = classes = raw.sum() * 0
        if len(at.target):
            stride, wanted = self.strides[level], targets[at.target]
            found = raw[at.picture, at.anchor, at.row, at.column]
            p = found[:, :4].sigmoid()
            cell = torch.stack((at.column, at.row), 1)
            centre = (p[:, :2] * 2 - 0.5 + cell) * stride
            sides = (p[:, 2:4] * 2) ** 2 * self.anchors[level][at.anchor]
            error = 1 - complete_iou(torch.cat((centre, sides), 1), wanted[:, 2:6])
            box = error.sum() / matches
            taught = _greatest(taught, at, (1 - error.detach()).clamp(min=0))
            if raw.shape[-1] > 6:
                right = F.one_hot(wanted[:, 1].long(), raw.shape[-1] - 5).to(raw.dtype)
                classes = F.binary_cross_entropy_with_logits(found[:, 5:], right, reduction="sum")
                classes = classes / (matches * right.shape[1])
        objectness = F.binary_cross_entropy_with_logits(raw[..., 4], taught, reduction="sum") / cells
        gains = self.gains
        return torch.stack((gains.box * box, gains.objectness[level] * objectness, gains.classes * classes))


def complete_iou(found: Float[Tensor, "k 4"], wanted: Float[Tensor, "k 4"]) -> Float[Tensor, " k"]:
    """CIoU of paired boxes (x, y, w, h), with finite gradients for sides as small as floats can be:

        IoU - d² / c² - v² / (1 - IoU + v),    v = (4 / π²) (atan(w / h) - atan(w' / h'))²

    d: distance of the centres; c: diagonal of the box around both; v / (1 - IoU + v) is a weight without a
    gradient. The sides come as they are, since those of corners, once subtracted, can be 0, which has no angle.

    Example:
        >>> box = torch.tensor([[10.0, 10.0, 4.0, 2.0]])
        >>> complete_iou(box, box)
        tensor([1.0000])
    """
    a, b = corners(found), corners(wanted)
    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    iou = shared / (found[:, 2:].prod(1) + wanted[:, 2:].prod(1) - shared + TINY)
    around = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    apart = (found[:, :2] - wanted[:, :2]).square().sum(1) / (around.square().sum(1) + TINY)
    angles = [torch.atan2(*box[:, 2:].clamp(min=TINY).unbind(1)) for box in (found, wanted)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]).square()
    with torch.no_grad():
        weight = v / (1 - iou + v + TINY)
    return iou - apart - weight * v


def _greatest(taught: Tensor, at: Matches, quality: Tensor) -> Tensor:
    """The greatest quality that each cell was matched with: the same in any order of the targets."""
    _, anchors, rows, columns = taught.shape
    place = ((at.picture * anchors + at.anchor) * rows + at.row) * columns + at.column
    return taught.flatten().scatter_reduce(0, place, quality.to(taught.dtype), "amax").view_as(taught)
