"""From the network's predictions to boxes: confidence, then non-maximum suppression within each class.

    score(box, class) = objectness · probability(class)

Greedy suppression: the best box stands, every box of its class whose IoU with it is above the limit falls,
and so on.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import batched_nms

MOST_CANDIDATES = 30_000


def corners(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Boxes given by centre and size (x, y, w, h) as corners (x1, y1, x2, y2).

    >>> corners(torch.tensor([[10.0, 10.0, 4.0, 2.0]]))
    tensor([[ 8.,  9., 12., 11.]])
    """
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


@dataclass(frozen=True)
class Limits:
    """Which boxes count.

    A box is a candidate where objectness and score are above `confidence`; it has its best class, or with
    `multi_label` every class whose score is above. `most` limits the boxes of a picture; `classes` keeps only
    those class indices; `agnostic` lets boxes of different classes suppress each other.

    Raises `ValueError` for limits outside 0..1.

    >>> Limits(confidence=0.001, iou=0.6, multi_label=True).most
    300
    """

    confidence: float = 0.25
    iou: float = 0.45
    most: int = 300
    classes: tuple[int, ...] | None = None
    multi_label: bool = False
    agnostic: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1 or not 0 <= self.iou <= 1:
            raise ValueError(f"confidence {self.confidence} and IoU {self.iou} must lie in 0..1")
        if self.most < 1:
            raise ValueError(f"most {self.most}: at least one box must be allowed")


USUAL = Limits()


def suppress(
    predictions: Float[Tensor, "pictures boxes values"], limits: Limits = USUAL
) -> list[Float[Tensor, "found 6"]]:
    """The boxes that stand in each picture: rows of x1, y1, x2, y2, score, class, best first.

    `predictions` holds x, y, w, h (pixels), objectness and class probabilities, as `YOLOv5` in eval mode
    returns them. Source: torchvision's `batched_nms`.

    >>> suppress(torch.tensor([[[8.0, 8.0, 4.0, 4.0, 0.9, 0.1, 1.0]]]))[0]
    tensor([[ 6.0000,  6.0000, 10.0000, 10.0000,  0.9000,  1.0000]])
    """
    found = []
    for picture in predictions:
        rows = picture[picture[:, 4] > limits.confidence]
        found.append(_standing(rows[:, :4], rows[:, 5:] * rows[:, 4:5], limits))
    return found


def suppress_scores(
    scores: Float[Tensor, "pictures values boxes"], limits: Limits = USUAL
) -> list[Float[Tensor, "found 6"]]:
    """As `suppress`, for the layout of later YOLOs: rows x, y, w, h and one score a class, a column for each
    box.
    """
    found = []
    for picture in scores:
        columns = picture[:, picture[4:].amax(dim=0) > limits.confidence]
        found.append(_standing(columns[:4].T, columns[4:].T, limits))
    return found


def _standing(boxes: Float[Tensor, "n 4"], scores: Float[Tensor, "n classes"], limits: Limits) -> Tensor:
    if limits.multi_label:
        which, label = (scores > limits.confidence).nonzero(as_tuple=True)
        score = scores[which, label]
    else:
        score, label = scores.max(dim=1)
        which = (score > limits.confidence).nonzero().squeeze(1)
        score, label = score[which], label[which]
    if limits.classes is not None:
        kept = torch.isin(label, torch.tensor(limits.classes, dtype=label.dtype, device=label.device))
        which, score, label = which[kept], score[kept], label[kept]
    if len(score) > MOST_CANDIDATES:
        score, best = score.topk(MOST_CANDIDATES)
        which, label = which[best], label[best]
    edges = corners(boxes[which])
    groups = torch.zeros_like(label) if limits.agnostic else label
    stands = batched_nms(edges.float(), score.float(), groups, limits.iou)[: limits.most]
    return torch.cat((edges[stands], score[stands, None], label[stands, None].to(edges.dtype)), dim=1)
