"""Augmentation moves boxes as it moves pixels, and depends on (seed, epoch, picture) alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.detect.data_sets import squares
from unbranch.detect.augment import MIN_AREA, Sample, compose, flip, recolour, sample, shift_hsv
from unbranch.detect.data import EvaluationSet, TrainingKeys, TrainingSet, check_split, open_spec
from unbranch.detect.data.batches import Batch, Key
from unbranch.detect.data.check import Split
from unbranch.detect.errors import InputError
from unbranch.detect.recipe import Recipe

STILL = Recipe(hue=0.0, saturation=0.0, value=0.0, translate=0.0, scale=0.0, flip_horizontal=0.0, mosaic=0.0)


def marked(height: int, width: int, box: tuple[int, int, int, int], grey: int = 114) -> Sample:
    """Grey with one white rectangle, which its box outlines."""
    image = torch.full((3, height, width), grey, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = 255
    return sample(image, torch.tensor([box], dtype=torch.float32), torch.tensor([1]))


def bright_box(image: Tensor) -> list[float]:
    """The outline of what is nearly white."""
    rows, columns = (image[0] > 185).nonzero(as_tuple=True)
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return [float(edge) for edge in edges]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return check_split(open_spec(squares(tmp_path_factory.mktemp("squares"))), "train", 64, "ram")


@pytest.mark.parametrize("seed", range(40))
def test_a_box_follows_its_pixels(seed: int) -> None:
    recipe = replace(Recipe(), hue=0.0, saturation=0.0, value=0.0, flip_vertical=0.5)
    draw = np.random.default_rng(seed)
    parts = [marked(48, 64, (20, 16, 44, 34)) for _ in range(1)]
    made = flip(compose(parts, 64, recipe, draw), recipe, draw)
    if not len(made.boxes):
        assert bright_box(made.image)[2] <= 64
        return
    found = torch.tensor(bright_box(made.image))
    assert torch.allclose(made.boxes[0].as_subclass(Tensor), found, atol=1.6)


@pytest.mark.parametrize("seed", range(20))
def test_each_box_of_a_mosaic_follows_its_pixels(seed: int) -> None:
    recipe = replace(STILL, scale=0.5, translate=0.1)
    for place in range(4):
        parts = [
            marked(64, 64, (20, 16, 44, 40)) if i == place else marked(64, 64, (0, 0, 0, 0)) for i in range(4)
        ]
        empty = [sample(p.image, torch.zeros(0, 4), torch.zeros(0).long()) for p in parts]
        parts = [p if i == place else empty[i] for i, p in enumerate(parts)]
        made = compose(parts, 64, recipe, np.random.default_rng(seed))
        if len(made.boxes):
            assert torch.allclose(
                made.boxes[0].as_subclass(Tensor), torch.tensor(bright_box(made.image)), atol=1.6
            )


def test_a_still_recipe_is_a_letterbox() -> None:
    made = compose([marked(32, 64, (10, 4, 30, 20))], 64, STILL, np.random.default_rng(0))
    assert made.boxes.tolist() == [[10, 20, 30, 36]]
    assert bright_box(made.image) == [10, 20, 30, 36]
    assert int(made.image[0, 0, 0]) == 114


def test_a_mosaic_shows_four_pictures_that_meet_in_a_point() -> None:
    parts = [
        sample(
            torch.full((3, 64, 64), 50 * (i + 1), dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0).long()
        )
        for i in range(4)
    ]
    made = compose(parts, 64, STILL, np.random.default_rng(3))
    corners = [int(made.image[0, y, x]) for y in (0, 63) for x in (0, 63)]
    assert corners == [50, 100, 150, 200]


@pytest.mark.parametrize("seed", range(5))
def test_scale_is_about_the_centre(seed: int) -> None:
    recipe = replace(STILL, scale=0.4)
    made = compose([marked(32, 64, (16, 8, 48, 24))], 64, recipe, np.random.default_rng(seed))
    x1, y1, x2, y2 = made.boxes[0].tolist()
    assert (x1 + x2, y1 + y2) == pytest.approx((64, 64), abs=1e-3)
    assert (x2 - x1) == pytest.approx(2 * (y2 - y1), abs=1e-3)
    assert x2 - x1 != pytest.approx(32, abs=0.05)


def test_slivers_are_dropped_and_boxes_are_cut() -> None:
    recipe = replace(STILL, translate=1.0)
    kept = 0
    for seed in range(60):
        made = compose([marked(64, 64, (16, 16, 48, 48))], 64, recipe, np.random.default_rng(seed))
        assert bool((made.boxes >= 0).all())
        assert bool((made.boxes <= 64).all())
        for x1, y1, x2, y2 in made.boxes.tolist():
            assert (x2 - x1) * (y2 - y1) > MIN_AREA * 32 * 32
            kept += 1
    assert 10 < kept < 55


def hsv(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    import colorsys

    return colorsys.rgb_to_hsv(*(c / 255 for c in rgb))


@pytest.mark.parametrize("rgb", [(200, 40, 60), (30, 90, 160), (120, 130, 20), (80, 80, 80), (0, 0, 0)])
def test_colour_changes_are_those_of_hsv(rgb: tuple[int, int, int]) -> None:
    image = torch.tensor(rgb, dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)
    pixel = shift_hsv(image, 0.1, 0.5, 0.8)[:, 0, 0].tolist()
    hue, saturation, value = hsv(rgb)
    import colorsys

    wanted = colorsys.hsv_to_rgb((hue + 0.1) % 1, saturation * 0.5, value * 0.8)
    assert pixel == pytest.approx([255 * c for c in wanted], abs=3)


def test_colours_saturate_and_do_not_wrap() -> None:
    image = torch.tensor([250, 240, 10], dtype=torch.uint8).view(3, 1, 1)
    assert shift_hsv(image, 0.0, 1.7, 1.4).flatten().tolist()[0] == 255


def test_recolouring_leaves_boxes_alone() -> None:
    given = marked(32, 32, (4, 4, 20, 20))
    made = recolour(given, Recipe(), np.random.default_rng(0))
    assert torch.equal(made.boxes, given.boxes)
    assert not torch.equal(made.image, given.image)


def batches(split: Split, ranks: int = 1, workers: int = 0, epochs: int = 2) -> list[list[Batch]]:
    """For each epoch the batches, those of all ranks joined."""
    made = TrainingSet(split, Recipe(), seed=5, plain_from=1)
    result = []
    for epoch in range(epochs):
        parts = []
        for rank in range(ranks):
            keys = TrainingKeys(len(split), 4, 64, 5, rank, ranks, multi_scale=0.5)
            keys.set_epoch(epoch)
            parts.append(list(DataLoader(made, batch_size=None, sampler=keys, num_workers=workers)))
        result.append([joined(step) for step in zip(*parts, strict=True)])
    return result


def joined(parts: tuple[Batch, ...]) -> Batch:
    targets, seen = [], 0
    for part in parts:
        shifted = part.targets.clone()
        shifted[:, 0] += seen
        targets.append(shifted)
        seen += len(part.images)
    images = torch.cat([part.images for part in parts])
    pictures = tuple(picture for part in parts for picture in part.key.pictures)
    return Batch(images, torch.cat(targets), parts[0].key._replace(pictures=pictures))


def same(first: list[list[Batch]], second: list[list[Batch]]) -> bool:
    pairs = [pair for one, two in zip(first, second, strict=True) for pair in zip(one, two, strict=True)]
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) and a.key == b.key
        for a, b in pairs
    )


def test_batches_do_not_depend_on_workers_or_ranks(split: Split) -> None:
    alone = batches(split)
    assert same(alone, batches(split, workers=2))
    assert same(alone, batches(split, ranks=2))
    assert same(alone, batches(split, ranks=3))


def test_epochs_differ_and_so_do_seeds(split: Split) -> None:
    made = TrainingSet(split, Recipe(), seed=5, plain_from=9)
    other = TrainingSet(split, Recipe(), seed=6, plain_from=9)
    key = Key(0, (0, 1), 64)
    assert not torch.equal(made[key].images, made[key._replace(epoch=1)].images)
    assert not torch.equal(made[key].images, other[key].images)
    assert torch.equal(made[key].images, made[key].images)


def test_a_picture_is_the_same_in_any_batch(split: Split) -> None:
    made = TrainingSet(split, Recipe(), seed=5, plain_from=9)
    assert torch.equal(made[Key(3, (7, 2), 64)].images[1], made[Key(3, (2, 5), 64)].images[0])


@pytest.mark.parametrize(
    ("count", "batch", "ranks"), [(12, 4, 1), (13, 4, 2), (7, 16, 3), (3, 2, 2), (205, 16, 2)]
)
def test_every_picture_comes_once_an_epoch(count: int, batch: int, ranks: int) -> None:
    shares = [list(TrainingKeys(count, batch, 64, 0, rank, ranks)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    seen = sorted(picture for share in shares for key in share for picture in key.pictures)
    assert seen == list(range(count))
    sizes = [sum(len(share[step].pictures) for share in shares) for step in range(len(shares[0]))]
    assert max(sizes) - min(sizes) <= 1
    assert min(len(key.pictures) for share in shares for key in share) >= 1


def test_more_ranks_than_pictures_are_refused() -> None:
    with pytest.raises(InputError, match="2 pictures for 3 devices"):
        TrainingKeys(2, 4, 64, 0, 0, 3)


def test_multi_scale_draws_multiples_of_the_stride() -> None:
    sizes = {key.size for key in TrainingKeys(400, 4, 320, 0, multi_scale=0.5)}
    assert all(size % 32 == 0 for size in sizes)
    assert min(sizes) == 160
    assert max(sizes) == 480


def test_evaluation_batches_show_each_picture_once_where_they_say(tmp_path: Path) -> None:
    split = check_split(open_spec(squares(tmp_path, train=1, val=7)), "val", 96, "ram")
    seen = []
    for ranks in (1, 2):
        seen = [batch for rank in range(ranks) for batch in EvaluationSet(split, 3, 32, True, rank, ranks)]
        assert sorted(index for batch in seen for index in batch.pictures) == list(range(7))
    for batch in seen:
        for image, index, box in zip(batch.images, batch.pictures, batch.boxes, strict=True):
            inner = image[:, box.top : box.top + box.inner_rows, box.left : box.left + box.inner_columns]
            assert torch.equal(inner, split.held[index].pixels())


@pytest.mark.parametrize(("count", "batch", "ranks"), [(5, 8, 2), (1, 4, 3), (7, 2, 4), (12, 5, 3)])
def test_every_rank_has_something_to_evaluate(split: Split, count: int, batch: int, ranks: int) -> None:
    part = replace(split, paths=split.paths[:count], held=split.held[:count], labels=split.labels[:count])
    shares = [EvaluationSet(part, batch, rank=rank, ranks=ranks).batches for rank in range(ranks)]
    assert all(shares)
    assert {index for share in shares for pictures in share for index in pictures} == set(range(count))


def test_crowd_boxes_are_not_trained_on(split: Split) -> None:
    labels = replace(split.labels[0], crowd=torch.ones(len(split.labels[0].classes), dtype=torch.bool))
    changed = replace(split, labels=[labels, *split.labels[1:]])
    made = TrainingSet(changed, STILL, 0, 0)
    assert not len(made[Key(0, (0,), 64)].targets)
    assert len(made[Key(0, (1,), 64)].targets)
