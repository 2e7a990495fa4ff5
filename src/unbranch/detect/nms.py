"""From the network's predictions to boxes: confidence, then non-maximum suppression within each class.

    score(box, class) = objectness · probability(class)

Greedy suppression: the best box stands, every box of its class whose IoU with it is above the limit falls, and so on.
"""

from collections.abc import Sequence

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


def suppress(
    predictions: Float[Tensor, "pictures boxes values"],
    confidence: float = 0.25,
    iou: float = 0.45,
    most: int = 300,
    classes: Sequence[int] | None = None,
    multi_label: bool = False,
    agnostic: bool = False,
) -> list[Float[Tensor, "found 6"]]:
    """The boxes that stand in each picture: rows of x1, y1, x2, y2, score, class, best first.

    `predictions` holds x, y, w, h (pixels), objectness and class probabilities, as `YOLOv5` in eval mode returns them.
    A box is a candidate where objectness and score are above `confidence`; it has its best class, or with `multi_label`
    every class whose score is above. `most` limits the boxes of a picture; `classes` keeps only those class indices;
    `agnostic` lets boxes of different classes suppress each other. Source: torchvision's `batched_nms`.

    Raises `ValueError` for limits outside 0..1.

    >>> suppress(torch.tensor([[[8.0, 8.0, 4.0, 4.0, 0.9, 0.1, 1.0]]]))[0]
    tensor([[ 6.0000,  6.0000, 10.0000, 10.0000,  0.9000,  1.0000]])
    """
    if not 0 <= confidence <= 1 or not 0 <= iou <= 1:
        raise ValueError(f"confidence {confidence} and IoU {iou} must lie in 0..1")
    wanted = None if classes is None else torch.as_tensor(list(classes), device=predictions.device)
    return [
        _one_picture(rows[rows[:, 4] > confidence], confidence, iou, most, wanted, multi_label, agnostic)
        for rows in predictions
    ]


def _one_picture(
    rows: Tensor,
    confidence: float,
    iou: float,
    most: int,
    wanted: Tensor | None,
    multi_label: bool,
    agnostic: bool,
) -> Tensor:
    scores = rows[:, 5:] * rows[:, 4:5]
    if multi_label and scores.shape[1] > 1:
        which, label = (scores > confidence).nonzero(as_tuple=True)
        score = scores[which, label]
    else:
        score, label = scores.max(dim=1) if scores.numel() else (rows[:, 4], rows[:, 4].long())
        which = (score > confidence).nonzero().squeeze(1)
        score, label = score[which], label[which]
    if wanted is not None:
        kept = torch.isin(label, wanted)
        which, score, label = which[kept], score[kept], label[kept]
    if len(score) > MOST_CANDIDATES:
        score, best = score.topk(MOST_CANDIDATES)
        which, label = which[best], label[best]
    boxes = corners(rows[which, :4])
    groups = torch.zeros_like(label) if agnostic else label
    stands = batched_nms(boxes.float(), score.float(), groups, iou)[:most]
    return torch.cat((boxes[stands], score[stands, None], label[stands, None].to(boxes.dtype)), dim=1)
