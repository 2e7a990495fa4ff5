"""Which anchor in which cell learns which box: YOLOv5's assignment, one rule for every level.

A box and an anchor belong together where neither side differs by more than the threshold:

    max(w / a_w, a_w / w, h / a_h, a_h / h) < threshold

The box is then learnt by the cell that holds its centre and by the neighbour on each axis that the centre is
nearer to, since a cell can place a centre half a cell outside itself. Source: YOLOv5, release 5 and later.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


class Matches(NamedTuple):
    """One row a match: where in the level's map (n, anchors, rows, columns), and which row of the targets."""

    picture: Int64[Tensor, " k"]
    anchor: Int64[Tensor, " k"]
    row: Int64[Tensor, " k"]
    column: Int64[Tensor, " k"]
    target: Int64[Tensor, " k"]


def fits(sides: Float[Tensor, "m 2"], anchors: Float[Tensor, "a 2"], threshold: float) -> Bool[Tensor, "m a"]:
    """Whether each box (width, height) is within a factor of `threshold` of each anchor on both sides.

    Example:
        >>> fits(torch.tensor([[10.0, 20.0]]), torch.tensor([[10.0, 13.0], [60.0, 20.0]]), 4.0).tolist()
        [[True, False]]
    """
    ratio = sides[:, None] / anchors[None]
    return torch.maximum(ratio, 1 / ratio).amax(-1) < threshold


def assign(
    targets: Float[Tensor, "m 6"],
    anchors: Float[Tensor, "a 2"],
    stride: float,
    shape: Sequence[int],
    threshold: float = 4.0,
) -> Matches:
    """The matches of one level of `shape` (rows, columns).

    targets: rows of (picture, class, x, y, w, h) in pixels. anchors: (width, height) in pixels.

    Example:
        >>> box = torch.tensor([[0, 0, 20.0, 18.0, 12.0, 12.0]])
        >>> assign(box, torch.tensor([[10.0, 13.0]]), 8.0, (8, 8)).column.tolist()
        [2, 3, 2]
    """
    target, anchor = fits(targets[:, 4:6], anchors, threshold).nonzero(as_tuple=True)
    centre = targets[target, 2:4] / stride
    limit = centre.new_tensor([shape[1], shape[0]])
    own = centre.floor().minimum(limit - 1).clamp(min=0)
    part = centre - own
    step = torch.where(part < 0.5, -1.0, 1.0)
    cells = torch.stack((own, own + step * step.new_tensor([1, 0]), own + step * step.new_tensor([0, 1])))
    inside = ((cells >= 0) & (cells < limit)).all(-1)
    inside[1:] &= (part != 0.5).T
    which, match = inside.nonzero(as_tuple=True)
    column, row = cells[which, match].long().unbind(1)
    target, anchor = target[match], anchor[match]
    return Matches(targets[target, 0].long(), anchor, row, column, target)
