"""The detector on a GPU: it trains there in single and in mixed precision, and finds the boxes that it finds on the CPU."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("supervision")
pytest.importorskip("faster_coco_eval")

from tests.detect.data_sets import squares
from tests.detect.lives import TINY
from tests.detect.photographs import finder, picture
from unbranch.detect import Detector, Limits, train, validate
from unbranch.detect.checkpoint import load_model
from unbranch.fold.precision import full_precision

pytestmark = pytest.mark.gpu

LIMITS = Limits(confidence=0.2, iou=0.5, most=20)


@pytest.mark.parametrize("precision", ["auto", "32", "bf16-mixed"])
def test_it_trains_there(precision: str, tmp_path: Path) -> None:
    data = squares(tmp_path / "squares")
    network = {**TINY, "block": "repvgg"}
    done = train(
        data, folder=tmp_path / "run", size=64, batch=4, epochs=2, network=network, accelerator="cuda",
        precision=precision, quiet=True,
    )  # fmt: skip
    assert done.history.epochs == 2
    weights = load_model(done.best)
    assert all(bool(t.isfinite().all()) for t in weights.state_dict().values())
    again = validate(weights, data, size=64, batch=8, device="cuda").metrics
    assert again.map50 == pytest.approx(done.metrics.map50, abs=0.02)  # other batches, and so other sums


def test_the_same_boxes(tmp_path: Path) -> None:
    network = finder()
    pictures = [picture(128, 96, seed=seed) for seed in range(4)]
    expected = Detector(network, 128, LIMITS).boxes(pictures)
    there = Detector(network, 128, LIMITS, device="cuda:0")
    with full_precision():
        found = there.boxes(pictures)
    assert sum(map(len, expected)) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, atol=1e-2)
    assert len(there.boxes(pictures)) == 4
