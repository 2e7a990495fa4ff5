"""Fit a picture into the network's input: one scale for both axes, the rest filled with grey.

    network = picture · scale + offset        on each axis, in pixels

A rectangular letterbox pads only to the next multiple of the stride, so a wide picture costs a wide input and
not a square one.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

GREY = 114


@dataclass(frozen=True)
class Letterbox:
    """Where a picture of (height, width) lies in a network input of (rows, columns) pixels.

    >>> place(720, 1280, size=640, stride=32)
    Letterbox(height=720, width=1280, rows=384, columns=640, inner_rows=360, inner_columns=640, top=12,
    left=0)
    """

    height: int
    width: int
    rows: int
    columns: int
    inner_rows: int
    inner_columns: int
    top: int
    left: int

    @property
    def scale(self) -> tuple[float, float]:
        """Network pixels in a picture pixel, along x and y (they differ by rounding only)."""
        return self.inner_columns / self.width, self.inner_rows / self.height

    def to_network(self, boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
        """Corner boxes (x1, y1, x2, y2) in picture pixels, in network pixels."""
        x, y = self.scale
        return boxes * boxes.new_tensor([x, y, x, y]) + boxes.new_tensor([self.left, self.top] * 2)

    def to_picture(self, boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
        """Corner boxes (x1, y1, x2, y2) in network pixels, in picture pixels, cut at the picture's border."""
        x, y = self.scale
        moved = (boxes - boxes.new_tensor([self.left, self.top] * 2)) / boxes.new_tensor([x, y, x, y])
        return moved.clamp(min=0).minimum(boxes.new_tensor([self.width, self.height] * 2))


def place(
    height: int,
    width: int,
    size: int | tuple[int, int] = 640,
    stride: int = 32,
    rectangular: bool = True,
    enlarge: bool = True,
) -> Letterbox:
    """The letterbox of a picture of `height` x `width` for a network input of `size` pixels (one side, or
    rows, columns).

    Rectangular: the padding is cut down to what the stride needs. With `enlarge=False` small pictures are not
    scaled up. Raises `ValueError` for sizes that are not positive or not multiples of the stride.

    >>> place(1080, 810).rows, place(1080, 810).columns
    (640, 480)
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if min(height, width, rows, columns, stride) < 1:
        raise ValueError(
            f"a {width}x{height} picture for {columns}x{rows} pixels, stride {stride}: all must be positive"
        )
    if rows % stride or columns % stride:
        raise ValueError(
            f"an input of {columns}x{rows} pixels; both must be multiples of the stride, {stride}"
        )
    ratio = min(rows / height, columns / width)
    if not enlarge:
        ratio = min(ratio, 1.0)
    inner_rows, inner_columns = max(round(height * ratio), 1), max(round(width * ratio), 1)
    spare_rows, spare_columns = rows - inner_rows, columns - inner_columns
    if rectangular:
        spare_rows, spare_columns = spare_rows % stride, spare_columns % stride
    return Letterbox(
        height=height,
        width=width,
        rows=inner_rows + spare_rows,
        columns=inner_columns + spare_columns,
        inner_rows=inner_rows,
        inner_columns=inner_columns,
        top=spare_rows // 2,
        left=spare_columns // 2,
    )


def fill(picture: UInt8[np.ndarray, "height width 3"], box: Letterbox) -> UInt8[np.ndarray, "rows columns 3"]:
    """The picture, resized (bilinear, half-pixel centres, no antialiasing) into its letterbox; the rest is
    grey 114.

    >>> fill(np.zeros((30, 60, 3), np.uint8), place(30, 60, size=64)).shape
    (32, 64, 3)
    """
    canvas = np.full((box.rows, box.columns, 3), GREY, np.uint8)
    inner = canvas[box.top : box.top + box.inner_rows, box.left : box.left + box.inner_columns]
    if picture.shape[:2] == inner.shape[:2]:
        inner[...] = picture
    else:
        inner[...] = cv2.resize(picture, (box.inner_columns, box.inner_rows), interpolation=cv2.INTER_LINEAR)
    return canvas


_UNIT = (np.arange(256, dtype=np.float32) / np.float32(255)).astype(np.float32)


def network_input(canvas: UInt8[np.ndarray, "rows columns 3"]) -> Float[np.ndarray, "3 rows columns"]:
    """A filled letterbox in OpenCV's order (blue, green, red; 0..255) as the network reads it: red, green,
    blue planes in 0..1, each value exactly v / 255.

    >>> network_input(np.full((32, 64, 3), 255, np.uint8)).max()
    np.float32(1.0)
    """
    planes = np.empty((3, *canvas.shape[:2]), np.float32)
    for index, channel in enumerate(cv2.split(canvas)[::-1]):
        planes[index] = cv2.LUT(channel, _UNIT)
    return planes
