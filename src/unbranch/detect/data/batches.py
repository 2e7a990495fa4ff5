"""Batches that depend on (seed, epoch, picture) alone, however many workers and ranks make them.

The sampler hands out whole batches as keys; a key says everything that a worker needs, the epoch included.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from unbranch.detect.augment import Sample, compose, flip, recolour, sample
from unbranch.detect.data.check import Split
from unbranch.detect.errors import InputError
from unbranch.detect.letterbox import GREY, Letterbox, place
from unbranch.detect.recipe import Recipe

ORDER, SIZES = 1, 2
"""Streams of the epoch's own generator, beside those of its pictures."""


class Key(NamedTuple):
    """What one training batch is made of; `size` is the side it is trained at, in pixels."""

    epoch: int
    pictures: tuple[int, ...]
    size: int


class Batch(NamedTuple):
    """images (n, 3, s, s) uint8; targets (m, 6): picture in the batch, class, x, y, w, h in pixels; and the key."""

    images: UInt8[Tensor, "n 3 h w"]
    targets: Float[Tensor, "m 6"]
    key: Key


class EvaluationBatch(NamedTuple):
    """images (n, 3, h, w) uint8, the pictures' indices in their split, and where each lies in its input."""

    images: UInt8[Tensor, "n 3 h w"]
    pictures: tuple[int, ...]
    boxes: tuple[Letterbox, ...]


def steps_of(count: int, batch: int, ranks: int = 1) -> int:
    """Batches an epoch of `count` pictures; no rank is ever left without a picture.

    Raises InputError where there are fewer pictures than ranks.
    """
    if count < ranks:
        raise InputError(f"{count} pictures for {ranks} devices; use no more devices than pictures")
    return min(-(-count // batch), count // ranks)


class TrainingKeys(Sampler[Key]):
    """Every picture once an epoch, in an order drawn from (seed, epoch); each rank takes its share of each
    batch.

    The batches of an epoch have sizes that differ by one at most, so none is too small to train on. With
    `multi_scale` m, a batch's side is drawn within size · (1 ± m), a multiple of `stride`.

    Raises InputError where there are fewer pictures than ranks.

    Example:
        >>> [len(key.pictures) for key in TrainingKeys(count=10, batch=4, size=64, seed=0)]
        [4, 3, 3]
    """

    def __init__(
        self,
        count: int,
        batch: int,
        size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        multi_scale: float = 0.0,
        stride: int = 32,
    ) -> None:
        self.count, self.size, self.seed, self.rank, self.ranks = count, size, seed, rank, ranks
        self.multi_scale, self.stride = multi_scale, stride
        self.steps = steps_of(count, batch, ranks)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Key]:
        """The keys of this rank for the epoch that was set."""
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch, ORDER, self.count)).permutation(self.count)
        sizes = np.random.default_rng((self.seed, epoch, SIZES, self.count))
        for whole in np.array_split(order, self.steps):
            size = self._side(sizes)
            share = np.array_split(whole, self.ranks)[self.rank]
            yield Key(epoch, tuple(int(index) for index in share), size)

    def _side(self, draw: np.random.Generator) -> int:
        if not self.multi_scale:
            return self.size
        side = self.size * draw.uniform(1 - self.multi_scale, 1 + self.multi_scale)
        return max(round(side / self.stride), 1) * self.stride


class TrainingSet(Dataset[Batch]):
    """Augmented training batches of a split.

    plain_from: the first epoch without mosaic (`recipe.mosaic_off`).
    """

    def __init__(self, split: Split, recipe: Recipe, seed: int, plain_from: int) -> None:
        self.split, self.recipe, self.seed, self.plain_from = split, recipe, seed, plain_from
        self.boxes = [training_boxes(split, index) for index in range(len(split))]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> Batch:
        """The batch of `key`; the same one whoever asks."""
        samples = [self.sample(key.epoch, picture) for picture in key.pictures]
        return Batch(torch.stack([one.image for one in samples]), targets(samples), key)

    def sample(self, epoch: int, picture: int) -> Sample:
        """One augmented picture, drawn from (seed, epoch, picture)."""
        draw = np.random.default_rng((self.seed, epoch, 0, picture))
        mosaic = epoch < self.plain_from and draw.random() < self.recipe.mosaic
        others = draw.integers(len(self.split), size=3) if mosaic else ()
        parts = [sample(self.split.held[i].pixels(), *self.boxes[i]) for i in (picture, *map(int, others))]
        made = compose(parts, self.split.size, self.recipe, draw)
        return recolour(flip(made, self.recipe, draw), self.recipe, draw)


def training_boxes(split: Split, index: int) -> tuple[Float[Tensor, "n 4"], Int64[Tensor, " n"]]:
    """The boxes of a held picture that are trained on: corners in its training-size pixels, and classes."""
    held, labels = split.held[index], split.labels[index].trained
    box = place(held.height, held.width, split.size, stride=1)
    return box.to_network(labels.boxes) - labels.boxes.new_tensor([box.left, box.top] * 2), labels.classes


def targets(samples: Sequence[Sample]) -> Float[Tensor, "m 6"]:
    """The boxes of a batch as rows of (picture, class, x, y, w, h): centre and size in pixels."""
    rows = []
    for index, one in enumerate(samples):
        corners = one.boxes.as_subclass(Tensor)
        centre, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        numbers = torch.stack((torch.full_like(one.classes, index), one.classes), 1).to(corners.dtype)
        rows.append(torch.cat((numbers, centre, sides), 1))
    return torch.cat(rows)


class EvaluationSet(Dataset[EvaluationBatch]):
    """Letterboxed pictures of a split, in batches of like shape.

    rectangular: each batch as small as its pictures allow (multiples of `stride`, as the split's size is);
    otherwise all size x size.
    A rank's share is every `ranks`-th batch; no rank is left without one, if need be by giving one twice.
    """

    def __init__(
        self,
        split: Split,
        batch: int,
        stride: int = 32,
        rectangular: bool = True,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.split, self.stride, self.rectangular = split, stride, rectangular
        order = sorted(range(len(split)), key=lambda i: (split.held[i].height / split.held[i].width, i))
        share = min(batch, -(-len(order) // ranks))
        whole = [tuple(order[i : i + share]) for i in range(0, len(order), share)]
        self.batches = (whole if len(whole) >= ranks else whole * ranks)[rank::ranks]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> EvaluationBatch:
        """The batch of that index."""
        if index >= len(self.batches):
            raise IndexError(index)
        pictures = self.batches[index]
        held = [self.split.held[i] for i in pictures]
        rows, columns = self._shape([(one.height, one.width) for one in held])
        boxes = tuple(
            place(one.height, one.width, (rows, columns), self.stride, rectangular=False) for one in held
        )
        images = torch.full((len(held), rows, columns, 3), GREY, dtype=torch.uint8).permute(0, 3, 1, 2)
        for canvas, one, box in zip(images, held, boxes, strict=True):
            inner = canvas[:, box.top : box.top + box.inner_rows, box.left : box.left + box.inner_columns]
            inner.copy_(one.pixels())
        return EvaluationBatch(images, pictures, boxes)

    def _shape(self, pictures: Sequence[tuple[int, int]]) -> tuple[int, int]:
        size = self.split.size
        if not self.rectangular:
            return size, size
        placed = [place(height, width, size, self.stride) for height, width in pictures]
        return max(box.rows for box in placed), max(box.columns for box in placed)
