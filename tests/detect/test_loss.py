"""Assignment and loss against a slow one, written cell by cell."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from unbranch.detect.assign import assign, fits
from unbranch.detect.errors import InputError
from unbranch.detect.loss import DetectionLoss, Gains, complete_iou, scaled_gains
from unbranch.detect.nms import corners
from unbranch.detect.recipe import Recipe

ANCHORS = torch.tensor([[[10.0, 13.0], [16.0, 30.0]], [[30.0, 61.0], [62.0, 45.0]]], dtype=torch.float64)
STRIDES = torch.tensor([8.0, 16.0], dtype=torch.float64)
GAINS = Gains(0.05, (4.0, 1.0), 0.5)
SIDE = 64


def drawn_targets(generator: torch.Generator, count: int, pictures: int, classes: int) -> Tensor:
    picture = torch.randint(0, pictures, (count,), generator=generator)
    category = torch.randint(0, classes, (count,), generator=generator)
    centre = torch.rand(count, 2, generator=generator, dtype=torch.float64) * SIDE
    sides = 4 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * 56
    return torch.cat((torch.stack((picture, category), 1).double(), centre, sides), 1)


def drawn_maps(generator: torch.Generator, pictures: int, classes: int) -> list[Tensor]:
    return [
        torch.randn(pictures, 2, SIDE // s, SIDE // s, 5 + classes, generator=generator, dtype=torch.float64)
        for s in (8, 16)
    ]


def slow_matches(targets: Tensor, anchors: Tensor, stride: float, cells: int) -> list[tuple[int, ...]]:
    """Every (target, picture, anchor, row, column), by the rule in words."""
    found = []
    for t, (picture, _, x, y, w, h) in enumerate(targets.tolist()):
        for a, (aw, ah) in enumerate(anchors.tolist()):
            if max(w / aw, aw / w, h / ah, ah / h) >= 4:
                continue
            column, row = math.floor(x / stride), math.floor(y / stride)
            right, down = x / stride - column > 0.5, y / stride - row > 0.5
            for r, c in (
                (row, column),
                (row, column + (1 if right else -1)),
                (row + (1 if down else -1), column),
            ):
                if 0 <= r < cells and 0 <= c < cells:
                    found.append((t, int(picture), a, r, c))
    return found


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def cross_entropy(logit: float, target: float) -> float:
    return -(target * math.log(sigmoid(logit)) + (1 - target) * math.log(1 - sigmoid(logit)))


def ciou(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Boxes as x, y, w, h."""
    (x1, y1, w1, h1), (x2, y2, w2, h2) = first, second
    width = max(0.0, min(x1 + w1 / 2, x2 + w2 / 2) - max(x1 - w1 / 2, x2 - w2 / 2))
    height = max(0.0, min(y1 + h1 / 2, y2 + h2 / 2) - max(y1 - h1 / 2, y2 - h2 / 2))
    iou = width * height / (w1 * h1 + w2 * h2 - width * height)
    across = max(x1 + w1 / 2, x2 + w2 / 2) - min(x1 - w1 / 2, x2 - w2 / 2)
    along = max(y1 + h1 / 2, y2 + h2 / 2) - min(y1 - h1 / 2, y2 - h2 / 2)
    distance = ((x1 - x2) ** 2 + (y1 - y2) ** 2) / (across**2 + along**2)
    v = 4 / math.pi**2 * (math.atan(w2 / h2) - math.atan(w1 / h1)) ** 2
    return iou - distance - v * v / (1 - iou + v)


def slow_loss(maps: list[Tensor], targets: Tensor) -> list[float]:
    """Box, objectness and class loss a picture."""
    parts = [0.0, 0.0, 0.0]
    for level, raw in enumerate(maps):
        stride, cells = float(STRIDES[level]), raw.shape[2]
        taught: dict[tuple[int, ...], float] = {}
        box, classes = [], []
        for t, *place in slow_matches(targets, ANCHORS[level], stride, cells):
            p, a, r, c = place
            logits = raw[p, a, r, c].tolist()
            x, y = ((2 * sigmoid(logits[k]) - 0.5 + cell) * stride for k, cell in ((0, c), (1, r)))
            w, h = ((2 * sigmoid(logits[2 + k])) ** 2 * float(ANCHORS[level, a, k]) for k in (0, 1))
            quality = ciou((x, y, w, h), tuple(targets[t, 2:].tolist()))
            box.append(1 - quality)
            taught[tuple(place)] = max(taught.get(tuple(place), 0.0), quality)
            own = int(targets[t, 1])
            classes += [cross_entropy(logit, float(k == own)) for k, logit in enumerate(logits[5:])]
        objectness = [
            cross_entropy(float(raw[p, a, r, c, 4]), taught.get((p, a, r, c), 0.0))
            for p in range(raw.shape[0])
            for a in range(2)
            for r in range(cells)
            for c in range(cells)
        ]
        parts[0] += GAINS.box * sum(box) / max(len(box), 1)
        parts[1] += GAINS.objectness[level] * sum(objectness) / len(objectness)
        parts[2] += GAINS.classes * sum(classes) / max(len(classes), 1) if raw.shape[-1] > 6 else 0.0
    return parts


@pytest.mark.parametrize("seed", range(6))
def test_assignment_is_the_rule_in_words(seed: int) -> None:
    targets = drawn_targets(torch.Generator().manual_seed(seed), 30, 3, 4)
    for level, stride in enumerate((8, 16)):
        at = assign(targets, ANCHORS[level], float(stride), (SIDE // stride, SIDE // stride))
        found = zip(*(x.tolist() for x in (at.target, at.picture, at.anchor, at.row, at.column)), strict=True)
        wanted = slow_matches(targets, ANCHORS[level], stride, SIDE // stride)
        assert sorted(found) == sorted(wanted)
        assert len(wanted) > 20


@pytest.mark.parametrize(
    ("x", "columns"), [(0.0, {0}), (3.0, {0}), (5.0, {0, 1}), (4.0, {0}), (63.9, {7}), (64.0, {7})]
)
def test_assignment_at_the_border_and_half_way(x: float, columns: set[int]) -> None:
    targets = torch.tensor([[0, 0, x, 20.0, 10.0, 13.0]], dtype=torch.float64)
    at = assign(targets, ANCHORS[0, :1], 8.0, (8, 8))
    assert {c for c, r in zip(at.column.tolist(), at.row.tolist(), strict=True) if r == 2} == columns


def test_the_threshold_holds_on_both_sides() -> None:
    sides = torch.tensor([[39.9, 13.0], [40.1, 13.0], [2.51, 13.0], [2.49, 13.0]])
    assert fits(sides, torch.tensor([[10.0, 13.0]]), 4.0).flatten().tolist() == [True, False, True, False]


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_loss_is_the_slow_loss(classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets, maps = drawn_targets(generator, 12, 3, classes), drawn_maps(generator, 3, classes)
    losses = DetectionLoss(ANCHORS, STRIDES, GAINS)(maps, targets)
    wanted = slow_loss(maps, targets)
    assert losses.parts.tolist() == pytest.approx(wanted, rel=1e-6)
    assert float(losses.total) == pytest.approx(3 * sum(wanted), rel=1e-6)


def test_the_order_of_the_targets_changes_nothing(generator: torch.Generator) -> None:
    targets, maps = drawn_targets(generator, 40, 2, 3), drawn_maps(generator, 2, 3)
    loss = DetectionLoss(ANCHORS, STRIDES, GAINS)
    torch.testing.assert_close(
        loss(maps, targets).total, loss(maps, targets.flip(0)).total, rtol=1e-12, atol=0.0
    )


def test_no_boxes_teach_objectness_alone(generator: torch.Generator) -> None:
    maps = [raw.requires_grad_() for raw in drawn_maps(generator, 2, 3)]
    losses = DetectionLoss(ANCHORS, STRIDES, GAINS)(maps, torch.zeros(0, 6, dtype=torch.float64))
    losses.total.backward()
    assert losses.parts[0] == losses.parts[2] == 0
    for raw in maps:
        assert raw.grad is not None
        assert bool((raw.grad[..., 4] > 0).all())
        assert not raw.grad[..., [0, 1, 2, 3, 5]].any()


def test_perfect_maps_have_almost_no_loss() -> None:
    targets = torch.tensor([[0, 1, 20.0, 20.0, 10.0, 13.0]], dtype=torch.float64)
    anchors = ANCHORS[:1, :1]
    raw = torch.full((1, 1, 8, 8, 7), -12.0, dtype=torch.float64)
    at = assign(targets, anchors[0], 8.0, (8, 8))
    for row, column in zip(at.row.tolist(), at.column.tolist(), strict=True):
        x, y = ((20.0 / 8 - cell + 0.5) / 2 for cell in (column, row))
        raw[0, 0, row, column] = torch.tensor(
            [math.log(x / (1 - x)), math.log(y / (1 - y)), 0, 0, 12, -12, 12]
        )
    losses = DetectionLoss(anchors, STRIDES[:1], Gains(0.05, (1.0,), 0.5))([raw], targets)
    assert float(losses.total) < 1e-4


def test_ranks_together_have_the_gradient_of_the_whole_batch(generator: torch.Generator) -> None:
    """Two ranks with unequal shares; the exchange of counts is acted out."""
    targets, maps = drawn_targets(generator, 20, 3, 3), drawn_maps(generator, 3, 3)
    whole = [raw.clone().requires_grad_() for raw in maps]
    DetectionLoss(ANCHORS, STRIDES, GAINS)(whole, targets).total.backward()
    counts: list[Tensor] = []
    shares = [
        (slice(0, 1), targets[targets[:, 0] < 1]),
        (slice(1, 3), targets[targets[:, 0] >= 1] - torch.eye(6)[0]),
    ]

    def note(own: Tensor) -> Tensor:
        counts.append(own)
        return own

    for part, rows in shares:
        DetectionLoss(ANCHORS, STRIDES, GAINS, reduce=note)([raw[part] for raw in maps], rows)
    total = counts[0] + counts[1]
    for part, rows in shares:
        own = [raw[part].clone().requires_grad_() for raw in maps]
        DetectionLoss(ANCHORS, STRIDES, GAINS, ranks=2, reduce=lambda _: total)(own, rows).total.backward()
        for raw, reference in zip(own, whole, strict=True):
            assert raw.grad is not None
            assert reference.grad is not None
            torch.testing.assert_close(raw.grad / 2, reference.grad[part], rtol=1e-9, atol=1e-12)


def test_gains_scale_with_classes_levels_and_size() -> None:
    gains = scaled_gains(Recipe(), 40, 4, 320)
    assert gains.box == pytest.approx(0.05 * 3 / 4)
    assert gains.classes == pytest.approx(0.5 * 0.5 * 3 / 4)
    assert gains.objectness == pytest.approx([w * 0.25 * 3 / 4 for w in (4.0, 1.0, 0.25, 0.06)])


def test_a_balance_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(InputError, match="balance has 2 numbers, the network 3 levels"):
        scaled_gains(Recipe(balance=(1.0, 2.0)), 3, 3, 320)


def test_half_precision_maps_are_computed_in_single(generator: torch.Generator) -> None:
    targets, maps = drawn_targets(generator, 10, 2, 3).float(), drawn_maps(generator, 2, 3)
    loss = DetectionLoss(ANCHORS.float(), STRIDES.float(), GAINS)
    rounded = [raw.bfloat16() for raw in maps]
    assert loss(rounded, targets).total.dtype == torch.float32
    assert torch.equal(loss(rounded, targets).total, loss([raw.float() for raw in rounded], targets).total)


def test_auxiliary_maps_weigh_a_quarter() -> None:
    """Maps beyond the levels are levels once more: same anchors and strides, a quarter of the weight."""
    generator = torch.Generator().manual_seed(4)
    targets = drawn_targets(generator, 12, 2, 3)
    own, extra = drawn_maps(generator, 2, 3), drawn_maps(generator, 2, 3)
    loss = DetectionLoss(ANCHORS, STRIDES, GAINS)
    found, plain = loss([*own, *extra], targets), slow_loss(own, targets)
    expected = [a + 0.25 * b for a, b in zip(plain, slow_loss(extra, targets), strict=True)]
    assert found.parts.tolist() == pytest.approx(expected, rel=1e-6)
    assert found.total.item() == pytest.approx(2 * sum(expected), rel=1e-6)


def test_iou_of_ordinary_boxes_is_the_published_one(generator: torch.Generator) -> None:
    found, wanted = (
        torch.cat(
            (60 * torch.rand(500, 2, generator=generator), 1 + 50 * torch.rand(500, 2, generator=generator)),
            1,
        )
        for _ in range(2)
    )
    published = 1 - complete_box_iou_loss(corners(found.double()), corners(wanted.double()))
    assert (complete_iou(found.double(), wanted.double()) - published).abs().max() < 1e-6


@pytest.mark.parametrize("logit", [-5.0, -8.0, -12.0, -30.0, -80.0, -300.0])
def test_boxes_that_collapsed_teach_finite_gradients(logit: float, generator: torch.Generator) -> None:
    """Sides so small that corners far from the origin coincide in single precision."""
    maps = [raw.float() for raw in drawn_maps(generator, 1, 2)]
    maps[0][..., 3] = maps[1][..., 2] = logit
    maps[1][..., 3] = logit
    leaves = [raw.requires_grad_() for raw in maps]
    targets = drawn_targets(generator, 12, 1, 2).float()
    losses = DetectionLoss(ANCHORS.float(), STRIDES.float(), GAINS)(leaves, targets)
    losses.total.backward()
    for raw in leaves:
        assert raw.grad is not None
        assert bool(raw.grad.isfinite().all())
