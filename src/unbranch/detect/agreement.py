"""Whether an exported file says what torch says: raw outputs and boxes, on real pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unbranch.detect.engines import Output
from unbranch.detect.nms import USUAL, Limits, suppress, suppress_scores
from unbranch.fold.certificate import fold_error
from unbranch.models.yolov5 import YOLOv5

WORST_ERROR = 1e-4
PIXELS = 1.0
SCORE = 0.005


@dataclass(frozen=True)
class Agreement:
    """The worst error of the raw outputs, max|a − b| / max(1, max|b|) (None where the file suppresses), the
    boxes compared, those without a partner, and the inputs' shapes. True where the file may be trusted."""

    error: float | None
    boxes: int
    unmatched: int
    shapes: tuple[tuple[int, ...], ...]

    def __bool__(self) -> bool:
        return self.unmatched == 0 and (self.error is None or self.error <= WORST_ERROR)

    def __str__(self) -> str:
        raw = "" if self.error is None else f"outputs within {self.error:.1e}, "
        sizes = ", ".join(sorted({"x".join(map(str, shape)) for shape in self.shapes}))
        return f"{raw}{self.boxes} boxes compared, {self.unmatched} without a partner, on inputs of {sizes}"


def agree(
    run: Callable[[np.ndarray], Tensor],
    network: YOLOv5,
    inputs: Sequence[np.ndarray],
    output: Output,
    limits: Limits = USUAL,
) -> Agreement:
    """Run both on each input (n, 3, rows, columns). Boxes are the same within a pixel and 0.005 of score."""
    worst: float | None = None
    boxes = unmatched = 0
    for images in inputs:
        with torch.inference_mode():
            ours = network(torch.from_numpy(images))
        theirs = run(images)
        if output == "detections":
            stands = [theirs[theirs[:, 0] == i, 1:] for i in range(len(images))]
        else:
            expected = ours if output == "predictions" else as_scores(ours)
            worst = max(worst or 0.0, fold_error(theirs, expected))
            stands = suppress(theirs, limits) if output == "predictions" else suppress_scores(theirs, limits)
        for reference, found in zip(suppress(ours, limits), stands, strict=True):
            boxes += len(reference)
            unmatched += without_partner(reference, found, limits.confidence)
            unmatched += without_partner(found, reference, limits.confidence)
    return Agreement(worst, boxes, unmatched, tuple(images.shape for images in inputs))


def as_scores(predictions: Float[Tensor, "n boxes values"]) -> Float[Tensor, "n scores boxes"]:
    """Predictions in the layout of later YOLOs: score = objectness · probability."""
    return torch.cat((predictions[..., :4], predictions[..., 5:] * predictions[..., 4:5]), dim=-1).transpose(
        1, 2
    )


def without_partner(boxes: Float[Tensor, "n 6"], others: Float[Tensor, "m 6"], confidence: float) -> int:
    """How many of `boxes` have no box of their class in `others` within a pixel and 0.005 of score.

    A box whose score is within 0.005 of the threshold may be missing on the other side.
    """
    clear = boxes[boxes[:, 4] > confidence + SCORE]
    if not len(others):
        return len(clear)
    apart = (clear[:, None, :4] - others[None, :, :4]).abs().amax(dim=2)
    score = (clear[:, None, 4] - others[None, :, 4]).abs()
    same = clear[:, None, 5] == others[None, :, 5]
    return int((~((apart <= PIXELS) & (score <= SCORE) & same).any(dim=1)).sum())
