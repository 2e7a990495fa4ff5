"""Suppression against its definition, written out with loops, and the two layouts against each other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unbranch.detect.agreement import as_scores
from unbranch.detect.nms import Limits, corners, suppress, suppress_scores


def draw(boxes: int, classes: int, seed: int) -> Tensor:
    """Crowded predictions, so that many boxes overlap, with scores all different."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(boxes, 2, generator=generator) * 60
    sizes = torch.rand(boxes, 2, generator=generator) * 40 + 5
    rest = torch.rand(boxes, 1 + classes, generator=generator)
    return torch.cat((centres, sizes, rest), dim=1)


def overlap(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(area) - width * height)


def by_hand(rows: Tensor, limits: Limits) -> list[list[float]]:
    """Candidates, best first; each falls to a better one of its class that stands and covers it."""
    candidates = []
    for x, y, w, h, objectness, *probabilities in rows.double().tolist():
        if objectness <= limits.confidence:
            continue
        scores = [objectness * p for p in probabilities]
        chosen = range(len(scores)) if limits.multi_label else [scores.index(max(scores))]
        for label in chosen:
            wanted = limits.classes is None or label in limits.classes
            if scores[label] > limits.confidence and wanted:
                edges = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                candidates.append([*edges, scores[label], float(label)])
    candidates.sort(key=lambda row: -row[4])
    standing: list[list[float]] = []
    for row in candidates:
        rivals = [s for s in standing if limits.agnostic or s[5] == row[5]]
        if all(overlap(row, rival) <= limits.iou for rival in rivals):
            standing.append(row)
    return standing[: limits.most]


@given(
    st.integers(0, 60),
    st.integers(1, 4),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    st.sampled_from([0.2, 0.45, 0.7]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, (0,), (1, 3)]),
    st.sampled_from([3, 300]),
)
def test_suppression_is_its_definition(
    boxes: int,
    classes: int,
    seed: int,
    confidence: float,
    iou: float,
    multi_label: bool,
    agnostic: bool,
    only: tuple[int, ...] | None,
    most: int,
) -> None:
    rows = draw(boxes, classes, seed)
    limits = Limits(confidence, iou, most, only, multi_label, agnostic)
    [found] = suppress(rows[None], limits)
    expected = torch.tensor(by_hand(rows, limits)).reshape(-1, 6)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected.float(), atol=1e-4)


@given(st.integers(0, 40), st.integers(1, 4), st.integers(0, 10_000), st.booleans())
def test_both_layouts_give_the_same_boxes(boxes: int, classes: int, seed: int, multi_label: bool) -> None:
    """Objectness is at least the score, so the first threshold takes nothing that the second leaves."""
    rows = torch.stack((draw(boxes, classes, seed), draw(boxes, classes, seed + 1)))
    limits = Limits(multi_label=multi_label)
    for a, b in zip(suppress(rows, limits), suppress_scores(as_scores(rows), limits), strict=True):
        assert torch.equal(a, b)


def test_pictures_do_not_see_each_other() -> None:
    a, b = draw(30, 3, 1), draw(30, 3, 2)
    together = suppress(torch.stack((a, b)))
    assert torch.equal(together[0], suppress(a[None])[0])
    assert torch.equal(together[1], suppress(b[None])[0])


def test_only_the_best_candidates_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw(200, 1, 0)
    rows[:, :2] = torch.rand(200, 2) * 1e4  # far apart: nothing suppresses anything
    monkeypatch.setattr("unbranch.detect.nms.MOST_CANDIDATES", 10)
    [found] = suppress(rows[None], Limits(confidence=0.0))
    scores = (rows[:, 4] * rows[:, 5]).sort(descending=True).values
    assert torch.equal(found[:, 4], scores[:10])


def test_corners() -> None:
    assert corners(torch.tensor([10.0, 20.0, 4.0, 6.0])).tolist() == [8, 17, 12, 23]


@pytest.mark.parametrize("bad", [{"confidence": 1.5}, {"confidence": -0.1}, {"iou": 2.0}, {"most": 0}])
def test_limits_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad)).replace("iou", "IoU")):
        Limits(**bad)  # pyright: ignore[reportArgumentType]
