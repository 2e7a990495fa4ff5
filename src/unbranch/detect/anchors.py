"""Do the anchors fit the boxes of this data set, and if not, which would.

The fit of a box (w, h) and an anchor (a_w, a_h) is min(w / a_w, a_w / w, h / a_h, a_h / h): 1 is perfect, and
below 1 / threshold the anchor cannot be assigned to the box. A set of anchors reaches a box if one of them
does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unbranch.detect.data.batches import training_boxes
from unbranch.detect.data.check import Split

REACH = 0.98
"""Share of the boxes that the anchors must reach, else they are computed anew."""
MOST_BOXES = 10_000
SMALLEST = 2.0
SPREAD_ROUNDS = 30


class Fit(NamedTuple):
    """reach: share of the boxes within the threshold of an anchor; score: mean over all boxes of the best fit
    that is."""

    reach: float
    score: float


class Choice(NamedTuple):
    """The anchors to train with (levels, a, 2), in pixels, how they fit, and whether they are new."""

    anchors: Float[Tensor, "levels a 2"]
    before: Fit
    after: Fit
    changed: bool


def training_sides(split: Split) -> Float[np.ndarray, "m 2"]:
    """Width and height, in training-size pixels, of every box that is trained on and at least 2 pixels
    large."""
    corners = [training_boxes(split, index)[0] for index in range(len(split))]
    sides = torch.cat([box[:, 2:] - box[:, :2] for box in corners]).double().numpy()
    return sides[(sides >= SMALLEST).any(1)]


def fit(sides: Float[np.ndarray, "m 2"], anchors: Float[np.ndarray, "k 2"], threshold: float) -> Fit:
    """How well `anchors` fit boxes of these sides.

    Example:
        >>> fit(np.array([[10.0, 10.0], [90.0, 10.0]]), np.array([[10.0, 20.0]]), 4.0)
        Fit(reach=0.5, score=0.25)
    """
    best = _fits(sides, anchors).max(1)
    reached = best > 1 / threshold
    return Fit(float(reached.mean()), float((best * reached).mean()))


def choose_anchors(
    sides: Float[np.ndarray, "m 2"],
    anchors: Float[Tensor, "levels a 2"],
    threshold: float,
    seed: int,
    sizes: Sequence[float] = (1.0,),
) -> Choice:
    """Keep `anchors` where they reach 98 % of the boxes; otherwise compute better ones, if there are any.

    New anchors come from k-means on the boxes' sides and are then evolved by seeded mutation; small ones go
    to the first levels. `sizes` multiplies the boxes, for training at several sizes.
    """
    sides = np.concatenate([sides * factor for factor in sizes])
    given = anchors.reshape(-1, 2).double().numpy()
    before = fit(sides, given, threshold)
    if before.reach >= REACH or len(sides) < len(given):
        return Choice(anchors, before, before, changed=False)
    draw = np.random.default_rng((seed, len(sides)))
    if len(sides) > MOST_BOXES:
        sides = sides[draw.choice(len(sides), MOST_BOXES, replace=False)]
    found = evolve(sides, cluster(sides, len(given), draw), threshold, draw)
    found = found[np.argsort(found.prod(1), kind="stable")]
    after = fit(sides, found, threshold)
    if after.score <= before.score:
        return Choice(anchors, before, before, changed=False)
    return Choice(torch.from_numpy(found).float().reshape(anchors.shape), before, after, changed=True)


def cluster(
    sides: Float[np.ndarray, "m 2"], count: int, draw: np.random.Generator
) -> Float[np.ndarray, "count 2"]:
    """k-means of the sides' logarithms, started by k-means++: ratios are what an anchor is judged by.

    Source: Lloyd, 1982; Arthur and Vassilvitskii, 2007.
    """
    points = np.log(sides)
    centres = points[draw.integers(len(points), size=1)]
    while len(centres) < count:
        distance = ((points[:, None] - centres) ** 2).sum(-1).min(1)
        weight = distance + 1e-12
        centres = np.concatenate((centres, points[draw.choice(len(points), 1, p=weight / weight.sum())]))
    for _ in range(SPREAD_ROUNDS):
        nearest = ((points[:, None] - centres) ** 2).sum(-1).argmin(1)
        held = np.bincount(nearest, minlength=count)
        sums = np.stack([np.bincount(nearest, points[:, axis], minlength=count) for axis in (0, 1)], 1)
        centres = np.where(held[:, None] > 0, sums / np.maximum(held, 1)[:, None], centres)
    return np.exp(centres)


def evolve(
    sides: Float[np.ndarray, "m 2"],
    anchors: Float[np.ndarray, "k 2"],
    threshold: float,
    draw: np.random.Generator,
    generations: int = 1000,
) -> Float[np.ndarray, "k 2"]:
    """Multiply some sides of some anchors by about 1, keep what scores better; `generations` times."""
    best, score = anchors, fit(sides, anchors, threshold).score
    for _ in range(generations):
        chosen = draw.random(anchors.shape) < 0.9
        factor = np.where(chosen, 1 + 0.1 * draw.random() * draw.standard_normal(anchors.shape), 1.0)
        tried = np.maximum(best * factor.clip(0.3, 3.0), SMALLEST)
        now = fit(sides, tried, threshold).score
        if now > score:
            best, score = tried, now
    return best


def _fits(sides: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    ratio = sides[:, None] / anchors[None]
    return np.minimum(ratio, 1 / ratio).min(-1)
