"""Precision, recall and F1 against confidence, and which class is taken for which."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import box_area, box_iou

from unbranch.detect.data.check import Labels

CURVE_IOU = 0.5
CONFUSION_IOU = 0.45
CONFUSION_CONFIDENCE = 0.25


@dataclass(frozen=True)
class Curves:
    """For each class: precision, recall and F1 at each `confidence`, and precision at 101 recalls (0, 0.01 …
    1)."""

    confidence: Float[np.ndarray, " steps"]
    precision: Float[np.ndarray, "classes steps"]
    recall: Float[np.ndarray, "classes steps"]
    f1: Float[np.ndarray, "classes steps"]
    precision_at_recall: Float[np.ndarray, "101 classes"]


def confidence_curves(
    found: Sequence[Tensor],
    truth: Sequence[Labels],
    num_classes: int,
    precision_at_recall: Float[np.ndarray, "101 classes"],
) -> Curves:
    """Precision TP / (TP + FP), recall TP / boxes and F1 = 2 P R / (P + R) at 1,001 confidences, at IoU
    0.5."""
    judged = [judge(one, labels) for one, labels in zip(found, truth, strict=True)]
    counted = torch.cat([counts for counts, _ in judged]).numpy()
    right = torch.cat([hits for _, hits in judged]).numpy()
    rows = torch.cat(list(found)).double().cpu().numpy()
    boxes = torch.bincount(torch.cat([one.trained.classes for one in truth]), minlength=num_classes).numpy()
    steps = np.linspace(0, 1, 1001)
    precision, recall = np.zeros((num_classes, 1001)), np.zeros((num_classes, 1001))
    for index in range(num_classes):
        own = counted & (rows[:, 5] == index)
        order = np.argsort(-rows[own, 4], kind="stable")
        scores, hits = rows[own, 4][order], np.cumsum(right[own][order])
        number = np.searchsorted(-scores, -steps, side="right")
        true = np.concatenate(([0], hits))[number]
        precision[index] = np.where(number > 0, true / np.maximum(number, 1), 1.0)
        recall[index] = true / max(boxes[index], 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return Curves(steps, precision, recall, f1, precision_at_recall)


def judge(found: Float[Tensor, "k 6"], labels: Labels) -> tuple[Bool[Tensor, " k"], Bool[Tensor, " k"]]:
    """Which detections count (those on a crowd do not), and which of them are right, in one picture.

    Best score first, each takes the free box of its class that it overlaps most, if by IoU 0.5 at least.
    """
    found = found.cpu()
    single, crowd = labels.trained, labels.boxes[labels.crowd]
    crowd_class = labels.classes[labels.crowd]
    overlap = box_iou(found[:, :4], single.boxes) * (found[:, 5:] == single.classes)
    right = torch.zeros(len(found), dtype=torch.bool)
    for row in found[:, 4].argsort(descending=True, stable=True).tolist():
        if overlap.shape[1] and overlap[row].max() >= CURVE_IOU:
            right[row] = True
            overlap[:, overlap[row].argmax()] = 0
    on_crowd = (_inside(found[:, :4], crowd) * (found[:, 5:] == crowd_class) >= CURVE_IOU).any(1)
    return right | ~on_crowd, right


def _inside(boxes: Tensor, areas: Tensor) -> Float[Tensor, "k c"]:
    """Share of each box that lies in each area."""
    low, high = (
        torch.maximum(boxes[:, None, :2], areas[:, :2]),
        torch.minimum(boxes[:, None, 2:], areas[:, 2:]),
    )
    return (high - low).clamp(min=0).prod(-1) / box_area(boxes)[:, None].clamp(min=1e-9)


def confusion_matrix(
    found: Sequence[Tensor], truth: Sequence[Labels], num_classes: int
) -> Int64[np.ndarray, "found truth"]:
    """Boxes found as class p (row) that are of class t (column); the last index is "nothing there".

    Only detections above confidence 0.25; pairs by greatest IoU, 0.45 at least, whatever their classes.
    """
    side = num_classes + 1
    cells = [np.zeros(0, dtype=np.int64)]
    for one, labels in zip(found, truth, strict=True):
        sure = one[one[:, 4] > CONFUSION_CONFIDENCE].cpu()
        rows, columns = _pairs(box_iou(sure[:, :4], labels.trained.boxes))
        predicted, true = sure[:, 5].long().numpy(), labels.trained.classes.numpy()
        cells.append(predicted[rows] * side + true[columns])
        cells.append(np.delete(predicted, rows) * side + num_classes)
        cells.append(num_classes * side + np.delete(true, columns))
    return np.bincount(np.concatenate(cells), minlength=side * side).reshape(side, side)


def _pairs(overlap: Float[Tensor, "k m"]) -> tuple[list[int], list[int]]:
    """One-to-one pairs, the greatest overlap first."""
    rows, columns = (overlap >= CONFUSION_IOU).nonzero(as_tuple=True)
    order = overlap[rows, columns].argsort(descending=True, stable=True)
    kept_rows: list[int] = []
    kept_columns: list[int] = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in kept_rows and column not in kept_columns:
            kept_rows.append(row)
            kept_columns.append(column)
    return kept_rows, kept_columns
