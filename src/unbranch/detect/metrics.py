"""How good detections are: the COCO evaluator's mean average precision, and what a person reads beside it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Float
from torch import Tensor

from unbranch.detect.curves import Curves, confidence_curves, confusion_matrix
from unbranch.detect.data.check import Labels, Split

Found: TypeAlias = Float[Tensor, "_ 6"]


@dataclass(frozen=True)
class ClassMetrics:
    """One class: its boxes, AP at IoU 0.5 and averaged over 0.5…0.95, precision and recall where mean F1 is
    best.

    The four measures are NaN where no box of the class is there to be found.
    """

    name: str
    boxes: int
    map50: float
    map: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Metrics:
    """The measures of one split; `map` is mAP50-95. Means are over the classes that have boxes.

    precision and recall are those at `confidence`, where the mean F1 (IoU 0.5) is best; `confusion[p, t]`
    counts boxes found as class p that are t, the last row and column being "nothing"; `curves` is drawn from
    IoU 0.5.
    """

    map: float
    map50: float
    map75: float
    precision: float
    recall: float
    confidence: float
    pictures: int
    classes: tuple[ClassMetrics, ...]
    curves: Curves
    confusion: np.ndarray

    @property
    def fitness(self) -> float:
        """What training keeps the best of: 0.1 · mAP50 + 0.9 · mAP50-95."""
        return 0.1 * self.map50 + 0.9 * self.map

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for JSON (None for NaN); without the curves."""
        plain = {
            name: getattr(self, name)
            for name in ("map", "map50", "map75", "precision", "recall", "confidence")
        }
        return {
            **plain,
            "pictures": self.pictures,
            "classes": [
                {name: None if value != value else value for name, value in asdict(one).items()}
                for one in self.classes
            ],
            "confusion": self.confusion.tolist(),
        }


def evaluate(found: Sequence[Found], split: Split) -> Metrics:
    """Measure what was found in each picture of `split`, in its order.

    found: rows of (x1, y1, x2, y2, score, class), in pixels of the original picture. Crowd boxes are neither
    missed nor wrongly found. At most 100 detections a picture count, as in COCO.

    Source: COCO's evaluation, as implemented by faster-coco-eval.
    """
    precision, truth = _coco_precision(found, split), split.labels
    names = split.names
    boxes = torch.bincount(torch.cat([one.trained.classes for one in truth]), minlength=len(names)).numpy()
    curves = confidence_curves(found, truth, len(names), precision[0])
    present = boxes > 0
    at = int(np.argmax(curves.f1[present].mean(0)))
    classes = tuple(_of_class(i, names[i], int(boxes[i]), precision, curves, at) for i in range(len(names)))
    return Metrics(
        map=float(precision[:, :, present].mean()),
        map50=float(precision[0][:, present].mean()),
        map75=float(precision[5][:, present].mean()),
        precision=float(curves.precision[present, at].mean()),
        recall=float(curves.recall[present, at].mean()),
        confidence=float(curves.confidence[at]),
        pictures=len(truth),
        classes=classes,
        curves=curves,
        confusion=confusion_matrix(found, truth, len(names)),
    )


def _of_class(
    index: int, name: str, boxes: int, precision: np.ndarray, curves: Curves, at: int
) -> ClassMetrics:
    if not boxes:
        return ClassMetrics(name, 0, math.nan, math.nan, math.nan, math.nan)
    return ClassMetrics(
        name,
        boxes,
        map50=float(precision[0, :, index].mean()),
        map=float(precision[:, :, index].mean()),
        precision=float(curves.precision[index, at]),
        recall=float(curves.recall[index, at]),
    )


def _coco_precision(found: Sequence[Found], split: Split) -> Float[np.ndarray, "ious recalls classes"]:
    """Precision at 10 IoU thresholds, 101 recalls, for each class; all areas, 100 detections a picture."""
    truth = COCO(_coco_truth(split))
    rows = [
        np.concatenate((np.full((len(one), 1), index), _coco_rows(one)), 1)
        for index, one in enumerate(found)
        if len(one)
    ]
    if not rows:
        return np.zeros((10, 101, len(split.names)))
    evaluator = COCOeval_faster(truth, truth.loadRes(np.concatenate(rows)), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    return np.maximum(evaluator.eval["precision"][..., 0, -1], 0.0)


def _coco_rows(found: Found) -> np.ndarray:
    """x, y, w, h, score, class."""
    rows = found.double().cpu().numpy().copy()
    rows[:, 2:4] -= rows[:, :2]
    return rows


def _coco_truth(split: Split) -> dict[str, Any]:
    pictures = [{"id": i, "width": one.width, "height": one.height} for i, one in enumerate(split.held)]
    annotations: list[dict[str, Any]] = []
    for picture, labels in enumerate(split.labels):
        for box, category, crowd in _rows(labels):
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": picture,
                    "category_id": category,
                    "iscrowd": int(crowd),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                }
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(split.names)]
    return {"images": pictures, "annotations": annotations, "categories": categories}


def _rows(labels: Labels) -> list[tuple[list[float], int, bool]]:
    return list(zip(labels.boxes.tolist(), labels.classes.tolist(), labels.crowd.tolist(), strict=True))
