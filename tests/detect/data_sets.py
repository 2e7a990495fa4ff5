"""Small data sets on disk, sound or broken on purpose, for the detector's tests."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((220, 40, 40), (40, 200, 60))


def write_picture(path: Path, width: int = 64, height: int = 48, seed: int = 0) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_squares(root: Path, split: str, count: int, seed: int, side: int = 96) -> None:
    """Pictures with one to three coloured squares on grey, in YOLO form: something that can be learnt."""
    draw = np.random.default_rng((seed, count))
    for index in range(count):
        grain = draw.integers(0, 30, (side, side, 1), dtype=np.uint8)
        pixels = np.full((side, side, 3), 90, np.uint8) + grain
        lines = []
        for _ in range(draw.integers(1, 4)):
            size, category = int(draw.integers(16, 40)), int(draw.integers(2))
            x, y = (int(v) for v in draw.integers(0, side - size, 2))
            pixels[y : y + size, x : x + size] = COLOURS[category]
            centre = ((x + size / 2) / side, (y + size / 2) / side)
            lines.append(f"{category} {centre[0]:.6f} {centre[1]:.6f} {size / side:.6f} {size / side:.6f}")
        picture = root / "images" / split / f"{index:03d}.png"
        label = root / "labels" / split / f"{index:03d}.txt"
        picture.parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(picture)
        label.write_text("\n".join(lines))


def squares(root: Path, train: int = 12, val: int = 6) -> Path:
    """A YOLO data set of coloured squares; gives its data.yaml."""
    write_squares(root, "train", train, 1)
    write_squares(root, "val", val, 2)
    file = root / "data.yaml"
    file.write_text("train: images/train\nval: images/val\nnames: [red, green]\n")
    return file
