"""Training the small branched network, the same to the last bit on every run of one machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from unbranch.demo.classification.digits import Digits, distorted
from unbranch.models import RepVGG

THREADS = 1
"""Fixed, since sums over a batch are rounded differently by another number of threads."""
BATCH = 100
PEAK_RATE = 4e-3
Progress = Callable[[int, int, float], object]


def network() -> RepVGG:
    """A RepVGG for 28x28 pictures: six blocks, of three branches where the shape stays and of two elsewhere."""
    return RepVGG((2, 3), (32, 48, 96), in_channels=1, num_classes=10)


@contextmanager
def repeatable(seed: int) -> Iterator[torch.Generator]:
    """A fixed number of threads and fixed draws inside; the caller's settings again afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield torch.Generator().manual_seed(seed)
    finally:
        torch.set_num_threads(threads)


def train(
    digits: Digits, epochs: int, seed: int = 0, progress: Progress = lambda step, steps, loss: None
) -> RepVGG:
    """A trained network in eval mode; AdamW on one cycle of the rate, labels smoothed, pictures distorted anew each epoch."""
    with repeatable(seed) as generator:
        model = network()
        steps = epochs * (len(digits.train) // BATCH)
        optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
        for step, (pictures, labels) in enumerate(_batches(digits, epochs, generator), start=1):
            loss = F.cross_entropy(model(pictures), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress(step, steps, float(loss.detach()))
    return model.eval()


def _batches(digits: Digits, epochs: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(epochs):
        order = torch.randperm(len(digits.train), generator=generator)
        for part in order.split(BATCH):
            if len(part) == BATCH:
                yield distorted(digits.train[part], generator), digits.train_labels[part]


@torch.no_grad()
def predict(model: nn.Module, pictures: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n classes"]:
    """Logits, a few hundred pictures at a time."""
    return torch.cat([model(part) for part in pictures.split(250)])


def accuracy(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """The share of pictures whose largest logit is the label's."""
    return float((logits.argmax(1) == labels).double().mean())
