"""Metrics on detections whose measures are known, and against the evaluator's definition."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unbranch.detect.curves import confusion_matrix, judge
from unbranch.detect.data import Labels, Report
from unbranch.detect.data.check import Split
from unbranch.detect.data.pictures import InFile
from unbranch.detect.metrics import evaluate


def labels(*rows: tuple[float, float, float, float, int], crowd: tuple[int, ...] = ()) -> Labels:
    boxes = torch.tensor([row[:4] for row in rows]).reshape(-1, 4)
    marks = torch.tensor([index in crowd for index in range(len(rows))], dtype=torch.bool)
    return Labels(boxes, torch.tensor([int(row[4]) for row in rows], dtype=torch.int64), marks)


def split_of(*truth: Labels, names: tuple[str, ...] = ("a", "b")) -> Split:
    held = [InFile(480, 640, str(i), Path(f"{i}.jpg"), 64) for i in range(len(truth))]
    return Split("val", names, 64, [one.file for one in held], held, truth, Report("val"))


def found(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)


def perfect(truth: Labels, score: float = 0.9) -> Tensor:
    return torch.cat(
        (truth.boxes, torch.full((len(truth.boxes), 1), score), truth.classes[:, None].float()), 1
    )


TRUTH = (
    labels((10.0, 10.0, 60.0, 60.0, 0), (100.0, 100.0, 180.0, 160.0, 1)),
    labels((200.0, 50.0, 300.0, 150.0, 0)),
    labels(),
)


def test_perfect_detections() -> None:
    metrics = evaluate([perfect(one) for one in TRUTH], split_of(*TRUTH))
    assert (metrics.map, metrics.map50, metrics.precision, metrics.recall) == (1, 1, 1, 1)
    assert metrics.fitness == pytest.approx(1)
    assert [(one.name, one.boxes, one.map) for one in metrics.classes] == [("a", 2, 1), ("b", 1, 1)]
    assert metrics.confusion.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_nothing_found() -> None:
    metrics = evaluate([found()] * 3, split_of(*TRUTH))
    assert (metrics.map, metrics.map50, metrics.recall) == (0, 0, 0)
    assert metrics.confusion.tolist() == [[0, 0, 0], [0, 0, 0], [2, 1, 0]]


def test_average_precision_by_hand() -> None:
    """One class, three boxes; in order of score: right, wrong, right. Precision 1 to recall 1/3, 2/3 to 2/3."""
    truth = labels((0.0, 0.0, 10.0, 10.0, 0), (20.0, 0.0, 30.0, 10.0, 0), (40.0, 0.0, 50.0, 10.0, 0))
    given = found((0, 0, 10, 10, 0.9, 0), (200, 0, 210, 10, 0.8, 0), (20, 0, 30, 10, 0.7, 0))
    metrics = evaluate([given], split_of(truth, names=("a",)))
    assert metrics.map50 == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)
    assert metrics.precision == pytest.approx(2 / 3)
    assert metrics.recall == pytest.approx(2 / 3)
    assert metrics.confidence <= 0.7


def test_a_shifted_box_counts_up_to_its_iou() -> None:
    truth = labels((0.0, 0.0, 100.0, 100.0, 0))
    metrics = evaluate([found((0, 0, 100, 78, 0.9, 0))], split_of(truth, names=("a",)))
    assert (metrics.map50, metrics.map75) == (1, 1)
    assert metrics.map == pytest.approx(0.6)


def test_a_class_without_boxes_is_left_out_of_the_means() -> None:
    truth = labels((0.0, 0.0, 100.0, 100.0, 0))
    metrics = evaluate([found((0, 0, 100, 100, 0.9, 0), (5, 5, 50, 50, 0.9, 1))], split_of(truth))
    assert metrics.map == 1
    assert math.isnan(metrics.classes[1].map)
    assert metrics.to_dict()["classes"][1]["map"] is None


def test_a_crowd_is_neither_missed_nor_wrongly_found() -> None:
    truth = labels((0.0, 0.0, 50.0, 50.0, 0), (100.0, 100.0, 300.0, 300.0, 0), crowd=(1,))
    given = found((0, 0, 50, 50, 0.5, 0), (110, 110, 150, 150, 0.9, 0), (200, 200, 240, 240, 0.8, 0))
    metrics = evaluate([given], split_of(truth, names=("a",)))
    assert (metrics.map50, metrics.precision, metrics.recall) == (1, 1, 1)
    assert metrics.classes[0].boxes == 1
    assert metrics.confusion[0, 0] == 1


@pytest.mark.parametrize("seed", range(5))
def test_curves_agree_with_counting(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth = []
    for _ in range(6):
        corner = draw.uniform(0, 300, (4, 2))
        boxes = np.concatenate((corner, corner + draw.uniform(20, 90, (4, 2))), 1)
        truth.append(
            Labels(torch.tensor(boxes).float(), torch.tensor(draw.integers(0, 2, 4)), torch.zeros(4).bool())
        )
    given = []
    for one in truth:
        near = one.boxes + torch.tensor(draw.uniform(-12, 12, (4, 4))).float()
        score = torch.tensor(draw.random((4, 1))).float()
        given.append(torch.cat((near, score, one.classes[:, None].float()), 1))
    metrics = evaluate(given, split_of(*truth))
    at = 400
    for index in range(2):
        true = total = 0
        for rows, one in zip(given, truth, strict=True):
            counts, right = judge(rows, one)
            own = counts & (rows[:, 5] == index) & (rows[:, 4] >= metrics.curves.confidence[at])
            true, total = true + int((right & own).sum()), total + int(own.sum())
        boxes = sum(int((one.classes == index).sum()) for one in truth)
        assert metrics.curves.recall[index, at] == pytest.approx(true / boxes)
        assert metrics.curves.precision[index, at] == pytest.approx(true / total if total else 1.0)


def test_each_box_is_found_once() -> None:
    truth = labels((0.0, 0.0, 50.0, 50.0, 0))
    counts, right = judge(found((1, 1, 50, 50, 0.6, 0), (0, 0, 50, 50, 0.9, 0)), truth)
    assert right.tolist() == [False, True]
    assert counts.tolist() == [True, True]


def test_confusion_names_the_wrong_class_and_the_nothing() -> None:
    truth = labels((0.0, 0.0, 50.0, 50.0, 0), (100.0, 0.0, 150.0, 50.0, 1))
    given = found((0, 0, 50, 50, 0.9, 1), (300, 300, 350, 350, 0.9, 0), (100, 0, 150, 50, 0.2, 1))
    assert confusion_matrix([given], [truth], 2).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_measures_do_not_depend_on_the_order_of_pictures() -> None:
    given = [perfect(one, 0.5 + 0.1 * index) for index, one in enumerate(TRUTH)]
    given[1] = given[1] + torch.tensor([30.0, 0, 30, 0, 0, 0])
    first = evaluate(given, split_of(*TRUTH))
    turned = evaluate(given[::-1], split_of(*TRUTH[::-1]))
    assert replace(first, curves=turned.curves, confusion=turned.confusion) == turned
