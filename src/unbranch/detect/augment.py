"""Augmentation: mosaic, scale and translate, flip, colour; on uint8 pictures, drawn from one generator a
picture.

    position in the result = gain · (position on the canvas - canvas centre) + result's centre + shift

Scale and translate are folded into the placing of each picture, so every pixel is resized once, at its final
size.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as v2

from unbranch.detect.letterbox import GREY
from unbranch.detect.recipe import Recipe

MIN_SIDE = 2.0
"""Pixels that a box must still be wide and high after augmentation."""
MIN_AREA = 0.1
"""Share of its area that a box must still show."""
MAX_ASPECT = 100.0


class Sample(NamedTuple):
    """A picture with its boxes: (3, h, w) uint8, corners in its pixels, class indices."""

    image: tv_tensors.Image
    boxes: tv_tensors.BoundingBoxes
    classes: Int64[Tensor, " n"]


def sample(
    image: UInt8[Tensor, "3 h w"], boxes: Float[Tensor, "n 4"], classes: Int64[Tensor, " n"]
) -> Sample:
    """Wrap tensors as the tv_tensors that torchvision.transforms.v2 works on."""
    height, width = image.shape[-2:]
    return Sample(
        tv_tensors.Image(image),
        tv_tensors.BoundingBoxes(
            boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(height, width)
        ),  # pyright: ignore[reportCallIssue]
        classes,
    )


def compose(samples: Sequence[Sample], size: int, recipe: Recipe, draw: np.random.Generator) -> Sample:
    """One (3, size, size) training sample from one picture, or from four as a mosaic.

    Four pictures meet at a point drawn within the middle half of a canvas of twice the size; one picture lies
    centred, as in a letterbox. The whole is scaled by 1 ± `recipe.scale` and shifted by ± `recipe.translate`.
    Boxes that shrink below 2 pixels, to a tenth of their area or to needles are dropped.

    Example:
        >>> grey = sample(torch.zeros(3, 48, 64, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0).long())
        >>> compose([grey] * 4, 64, Recipe(), np.random.default_rng(0)).image.shape
        torch.Size([3, 64, 64])
    """
    gain = float(draw.uniform(1 - recipe.scale, 1 + recipe.scale))
    shift = draw.uniform(-recipe.translate, recipe.translate, 2) * size
    if len(samples) == 1:
        height, width = samples[0].image.shape[-2:]
        corners = [np.array([-width / 2, -height / 2])]
    else:
        corners = _mosaic_corners(samples, draw.uniform(-size / 2, size / 2, 2))
    canvas = torch.full((size, size, 3), GREY, dtype=torch.uint8).permute(2, 0, 1)
    boxes, classes = [], []
    for part, corner in zip(samples, corners, strict=True):
        origin = corner * gain + shift + size / 2
        _paste(canvas, part.image, origin, gain)
        boxes.append(_moved(part.boxes, gain, origin))
        classes.append(part.classes)
    return _kept(canvas, torch.cat(boxes), torch.cat(classes))


def _mosaic_corners(samples: Sequence[Sample], centre: np.ndarray) -> list[np.ndarray]:
    """The top-left corners of four pictures that meet at `centre`, which is relative to the canvas centre."""
    corners = []
    for index, part in enumerate(samples):
        height, width = part.image.shape[-2:]
        back = np.array([width if index % 2 == 0 else 0, height if index < 2 else 0])
        corners.append(centre - back)
    return corners


def _paste(canvas: Tensor, image: Tensor, origin: np.ndarray, gain: float) -> None:
    """Draw `image`, scaled by `gain`, on the canvas with its corner at `origin`; only what will be seen is
    resized."""
    spans = []
    for axis, extent in ((0, image.shape[-1]), (1, image.shape[-2])):
        first = max(int(np.floor(-origin[axis] / gain)), 0)
        last = min(int(np.ceil((canvas.shape[-1] - origin[axis]) / gain)), extent)
        if last <= first:
            return
        spans.append((first, last, round(origin[axis] + first * gain), max(round((last - first) * gain), 1)))
    (x0, x1, left, width), (y0, y1, top, height) = spans
    seen = v2.resize_image(image[:, y0:y1, x0:x1], [height, width], antialias=False)
    x, y = max(left, 0), max(top, 0)
    shown = seen[:, y - top : canvas.shape[-2] - top, x - left : canvas.shape[-1] - left]
    canvas[:, y : y + shown.shape[-2], x : x + shown.shape[-1]] = shown


def _moved(boxes: Tensor, gain: float, origin: np.ndarray) -> Tensor:
    return boxes.as_subclass(Tensor) * gain + torch.from_numpy(np.tile(origin, 2)).to(boxes.dtype)


def _kept(canvas: Tensor, boxes: Tensor, classes: Tensor) -> Sample:
    """Cut the boxes at the border and keep those that still show something."""
    cut = v2.clamp_bounding_boxes(sample(canvas, boxes, classes).boxes).as_subclass(Tensor)
    sides, before = cut[:, 2:] - cut[:, :2], boxes[:, 2:] - boxes[:, :2]
    aspect = sides.max(1).values / sides.min(1).values.clamp(min=1e-9)
    kept = (sides > MIN_SIDE).all(1) & (sides.prod(1) > MIN_AREA * before.prod(1)) & (aspect < MAX_ASPECT)
    return sample(canvas, cut[kept], classes[kept])


def flip(given: Sample, recipe: Recipe, draw: np.random.Generator) -> Sample:
    """Mirrored left to right with probability `flip_horizontal`, upside down with `flip_vertical`."""
    if draw.random() < recipe.flip_horizontal:
        given = _mirrored(given, v2.horizontal_flip)
    if draw.random() < recipe.flip_vertical:
        given = _mirrored(given, v2.vertical_flip)
    return given


def _mirrored(given: Sample, mirror: Callable[[Tensor], Tensor]) -> Sample:
    return sample(mirror(given.image), mirror(given.boxes).as_subclass(Tensor), given.classes)


def recolour(given: Sample, recipe: Recipe, draw: np.random.Generator) -> Sample:
    """Hue turned by ± `hue` of a full turn, saturation and value multiplied by 1 ± `saturation` and 1 ±
    `value`."""
    turn, *gains = draw.uniform(-1, 1, 3) * (recipe.hue, recipe.saturation, recipe.value)
    if not (recipe.hue or recipe.saturation or recipe.value):
        return given
    return Sample(tv_tensors.Image(shift_hsv(given.image, turn, 1 + gains[0], 1 + gains[1])), *given[1:])


def shift_hsv(
    image: UInt8[Tensor, "3 h w"], turn: float, saturation: float, value: float
) -> UInt8[Tensor, "3 h w"]:
    """Change hue (by `turn` of a full turn), saturation and value (by factors, clipped at 1) of an RGB
    picture.

    In eight bits: hue, saturation and value have 256 steps each. Source: A. R. Smith, Color gamut transform
    pairs, 1978; OpenCV's full-range HSV.

    Example:
        >>> shift_hsv(torch.full((3, 1, 1), 100, dtype=torch.uint8), 0.1, 2.0, 0.5).flatten().tolist()
        [50, 50, 50]
    """
    hsv = cv2.cvtColor(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2HSV_FULL)
    steps = np.arange(256)
    tables = [
        (steps + round(256 * turn)) % 256,
        (steps * saturation).clip(0, 255),
        (steps * value).clip(0, 255),
    ]
    changed = cv2.LUT(hsv, np.stack(tables, 1).round().astype(np.uint8)[None])
    return torch.from_numpy(cv2.cvtColor(changed, cv2.COLOR_HSV2RGB_FULL)).permute(2, 0, 1)
