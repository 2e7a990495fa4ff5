"""Real photographs, and the trained YOLOv5n: what the detection tests look at."""

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support import randomize
from unbranch.detect.letterbox import network_input
from unbranch.models.yolov5 import YOLOv5, yolov5


class Reference(NamedTuple):
    """A photograph and what YOLOv5's original code found on it: rows of x1, y1, x2, y2, score, class."""

    path: Path
    input_shape: tuple[int, ...]
    boxes: Tensor


def assets() -> Path:
    """The photographs inside the ultralytics package; the test is skipped where it is not installed."""
    spec = importlib.util.find_spec("ultralytics")
    if spec is None or spec.origin is None:
        pytest.skip("ultralytics is not installed: its photographs are needed")
    return Path(spec.origin).parent / "assets"


def references(shared_data: Path) -> list[Reference]:
    stored = json.loads((shared_data / "yolov5n" / "reference_boxes.json").read_text())["pictures"]
    return [
        Reference(assets() / name, tuple(about["network_input"]), torch.tensor(about["boxes"]))
        for name, about in stored.items()
    ]


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A smooth random picture, blue green red, so that resizing it means something."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC))


def finder(**options: Any) -> YOLOv5:
    """A small network in training form, random in every number, that finds something on pictures such as `picture`."""
    small = {
        "channels": [8, 8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "names": ["a", "b", "c"],
        "block": "repvgg",
    }
    network = yolov5("yolov5n", **small | options)
    images = np.stack([network_input(picture(128, 128, seed)) for seed in range(2)])
    randomize(network, torch.Generator().manual_seed(5), torch.from_numpy(images))
    with torch.no_grad():
        for weight in network.detect.maps.parameters():
            weight.mul_(0.3)  # keeps probabilities away from 0 and 1, where all are alike
    return network.eval()


def write_video(path: Path, frames: int, code: str = "MJPG") -> None:
    stream = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10, (64, 48))
    assert stream.isOpened()
    for index in range(frames):
        stream.write(picture(seed=index))
    stream.release()
