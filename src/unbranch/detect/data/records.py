"""What every format is read into, before a picture has been opened."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class RawBox:
    """One box as its file gave it.

    corners: x1, y1, x2, y2, in pixels, or in fractions of the picture's sides where the entry is `relative`.
    crowd: a group or a difficult object: not trained on, and neither hit nor miss in evaluation.
    where: the file and the place in it, for messages.
    """

    corners: tuple[float, float, float, float]
    category: int
    crowd: bool
    where: str


@dataclass(frozen=True)
class Entry:
    """One picture and its boxes, as the annotation said; nothing checked against the picture yet."""

    path: Path
    boxes: Sequence[RawBox] = field(default_factory=tuple)
    relative: bool = False
