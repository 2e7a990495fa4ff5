"""`--calibrate`: the batches that a word on the command line stands for."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unbranch.detect.errors import InputError
from unbranch.models.yolo import YOLO

SIDE, TOGETHER, MOST = 640, 8, 64


def batches_of(source: str, model: nn.Module) -> Iterator[Tensor]:
    """Inputs in a `.npy` or `.safetensors` file as they are; pictures, for a detector, letterboxed to 640 pixels, 64 of them at most.

    Raises `InputError` where there are none, or they are of a kind that the network's input cannot be made of.
    """
    suffix = Path(source).suffix
    if suffix in (".npy", ".safetensors"):
        inputs = _stored(Path(source), suffix)
    elif isinstance(model, YOLO):
        inputs = _pictures(source, model.stride)
    else:
        raise InputError(
            f"--calibrate {source}: pictures calibrate a detector; for another network give a .npy or .safetensors file of its inputs"
        )
    like = next(model.parameters())
    return (one.to(like.device, like.dtype) for one in inputs)


def _stored(path: Path, suffix: str) -> list[Tensor]:
    """The arrays of a file, each a batch."""
    if not path.is_file():
        raise InputError(f"--calibrate {path}: there is no such file")
    try:
        found = (
            [torch.from_numpy(np.load(path, allow_pickle=False))]
            if suffix == ".npy"
            else list(load_file(path).values())
        )
    except (ValueError, OSError, EOFError, TypeError, SafetensorError) as error:
        raise InputError(f"--calibrate {path}: cannot be read: {' '.join(str(error).split())}") from error
    if not found or not all(one.numel() for one in found):
        raise InputError(f"--calibrate {path}: holds no data")
    if any(one.ndim == 0 for one in found):
        raise InputError(f"--calibrate {path}: holds a single number, which is no batch of inputs")
    if any(one.is_complex() for one in found):
        raise InputError(f"--calibrate {path}: holds complex numbers; save what the network takes")
    return found


def _pictures(source: str, stride: int) -> list[Tensor]:
    from unbranch.detect.letterbox import fill, network_input, place
    from unbranch.detect.sources import PictureFile, find, read_picture

    paths = [item.path for item in find(source) if isinstance(item, PictureFile)]
    if not paths:
        raise InputError(f"--calibrate {source}: no pictures")
    side = -(-SIDE // stride) * stride
    chosen = [paths[round(i * (len(paths) - 1) / max(MOST - 1, 1))] for i in range(MOST)]
    images = []
    for path in dict.fromkeys(chosen if len(paths) > MOST else paths):
        pixels = read_picture(path)
        height, width = pixels.shape[:2]
        box = place(height, width, (side, side), stride, False)
        images.append(torch.from_numpy(network_input(fill(pixels, box))))
    return [torch.stack(images[i : i + TOGETHER]) for i in range(0, len(images), TOGETHER)]
