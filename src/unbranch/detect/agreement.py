"""Whether an exported file says what torch says, on real pictures: raw outputs, and boxes.

Suppression is discontinuous: of two boxes with nearly the same score, rounding decides which one falls. So
boxes are not held against torch's boxes one by one, but against the definition: what stands is a suppression
of torch's candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import box_iou

from unbranch.detect.engines import Output
from unbranch.detect.nms import USUAL, Limits, corners, suppress, suppress_scores
from unbranch.fold.certificate import fold_error
from unbranch.models.yolo import YOLO

WORST_ERROR = 1e-4
PIXELS = 1.0
SCORE = 0.005
OVERLAP = 0.02
BOX_SIDES = 4


@dataclass(frozen=True)
class Agreement:
    """How well a file agrees with torch; true where it may be trusted.

    error: `output_error` of the raw outputs, the worst; None where the file suppresses. boxes:
    how many were looked at. wrong: how many of them, or of torch's candidates, break `broken_rules`. shapes:
    of the inputs.
    """

    error: float | None
    boxes: int
    wrong: int
    shapes: tuple[tuple[int, ...], ...]

    def __bool__(self) -> bool:
        return self.wrong == 0 and (self.error is None or self.error <= WORST_ERROR)

    def __str__(self) -> str:
        raw = "" if self.error is None else f"outputs within {self.error:.1e}, "
        sizes = ", ".join(sorted({"x".join(map(str, shape)) for shape in self.shapes}))
        return f"{raw}{self.boxes} boxes looked at, {self.wrong} wrong, on inputs of {sizes}"


def agree(
    run: Callable[[np.ndarray], Tensor],
    network: YOLO[Any],
    inputs: Sequence[np.ndarray],
    output: Output,
    limits: Limits = USUAL,
) -> Agreement:
    """Run both on each input (n, 3, rows, columns) and compare outputs and boxes."""
    worst: float | None = None
    boxes = wrong = 0
    for images in inputs:
        with torch.inference_mode():
            ours = network(torch.from_numpy(images))
        theirs = run(images)
        if output == "detections":
            stands = [theirs[theirs[:, 0] == i, 1:] for i in range(len(images))]
        else:
            expected, axis = (ours, 2) if output == "predictions" else (as_scores(ours), 1)
            worst = max(worst or 0.0, output_error(theirs, expected, axis))
            stands = suppress(theirs, limits) if output == "predictions" else suppress_scores(theirs, limits)
        for predictions, found in zip(ours, stands, strict=True):
            boxes += len(found)
            wrong += broken_rules(predictions, found, limits)
    return Agreement(worst, boxes, wrong, tuple(images.shape for images in inputs))


def output_error(found: Float[Tensor, "n _ _"], expected: Float[Tensor, "n _ _"], axis: int) -> float:
    """max|a − b| / max(1, max|b|), of the boxes (pixels) and of the probabilities apart: the worse of the
    two.

    `axis` holds x, y, w, h and the probabilities. Together, hundreds of pixels in the denominator would hide
    an error of the probabilities.
    """
    if found.shape != expected.shape:
        return float("inf")
    parts = ((0, BOX_SIDES), (BOX_SIDES, expected.shape[axis] - BOX_SIDES))
    return max(fold_error(found.narrow(axis, *part), expected.narrow(axis, *part)) for part in parts)


def as_scores(predictions: Float[Tensor, "n boxes values"]) -> Float[Tensor, "n scores boxes"]:
    """Predictions in the layout of later YOLOs: score = objectness · probability."""
    scores = predictions[..., 5:] * predictions[..., 4:5]
    return torch.cat((predictions[..., :4], scores), dim=-1).transpose(1, 2)


def broken_rules(
    predictions: Float[Tensor, "boxes values"], found: Float[Tensor, "found 6"], limits: Limits = USUAL
) -> int:
    """How often `found` (x1, y1, x2, y2, score, class) is no suppression, within each class, of
    `predictions`.

    Each found box is a prediction, within a pixel and 0.005 of score. No two of a class overlap by more than
    the limit (+ 0.02). Each prediction whose score is above the confidence (+ 0.005) is found, or overlaps a
    found box of its class with at least its score (− 0.005) by the limit (− 0.02) or more.
    """
    scores = predictions[:, 5:] * predictions[:, 4:5]
    candidate = scores.amax(dim=1) > limits.confidence - SCORE
    boxes, scores = corners(predictions[candidate, :4]), scores[candidate]
    best = scores.amax(dim=1, keepdim=True)
    edges, score, label = found[:, :4], found[:, 4], found[:, 5].long()
    its_score = scores[:, label]

    near = (boxes[:, None] - edges).abs().amax(dim=2) <= PIXELS
    known = near & ((its_score - score).abs() <= SCORE)
    invented = int((~known.any(dim=0)).sum())

    together = (box_iou(edges, edges) > limits.iou + OVERLAP) & (label[:, None] == label)
    standing_together = int(together.triu(diagonal=1).sum())

    covers = near | (box_iou(boxes, edges) >= limits.iou - OVERLAP)
    outdone = covers & (score >= best - SCORE) & (its_score >= best - SCORE)
    clear = best[:, 0] > limits.confidence + SCORE
    lost = int((clear & ~outdone.any(dim=1)).sum()) if len(found) < limits.most else 0
    return invented + standing_together + lost
