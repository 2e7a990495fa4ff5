"""Two processes train as one: the same steps with frozen norms, equal ranks with training ones."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.detect.data_sets import squares
from tests.detect.lives import SETTINGS
from tests.detect.photographs import finder
from unbranch.detect.checkpoint import load_model, save
from unbranch.expand import Expanded

JOB = Path(__file__).with_name("ddp_job.py")
SGD = {"optimizer": "sgd", "lr": 0.01, "nominal_batch": 8}


def run(data: Path, folder: Path, devices: int, **changes: Any) -> list[dict[str, Any]]:
    """Train in that many processes; what each noted."""
    settings = {**SETTINGS, "devices": devices, "batch": 4, "epochs": 2, **changes}
    notes = folder.parent / folder.name
    result = subprocess.run(
        [sys.executable, str(JOB), str(data), str(folder), f"{notes}-notes", json.dumps(settings)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(Path(f"{notes}-notes.rank{rank}.json").read_text()) for rank in range(devices)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares(tmp_path_factory.mktemp("squares"), train=13, val=5)


@pytest.mark.slow
def test_two_processes_with_frozen_norms_agree_with_one(data: Path, tmp_path: Path) -> None:
    for devices in (1, 2):
        run(data, tmp_path / str(devices), devices, freeze_norms=True, recipe=SGD)
    one, two = (load_model(tmp_path / str(devices) / "last.safetensors").state_dict() for devices in (1, 2))
    worst = max(float((one[name] - two[name]).abs().max()) for name in one if one[name].is_floating_point())
    assert worst < 1e-5
    fresh = run(
        data, tmp_path / "still", 1, freeze_norms=True, recipe={**SGD, "lr": 0.0, "warmup_bias_lr": 0.0}
    )
    assert fresh
    start = load_model(tmp_path / "still" / "last.safetensors").state_dict()
    moved = max(float((one[name] - start[name]).abs().max()) for name in one if one[name].is_floating_point())
    assert moved > 100 * worst, "the weights hardly moved: agreement proves nothing"
    first, second = (
        (tmp_path / str(d) / "results.csv").read_text().splitlines()[-1].split(",") for d in (1, 2)
    )
    assert [float(a) for a in first[:8]] == pytest.approx([float(b) for b in second[:8]], abs=1e-4)


@pytest.mark.slow
def test_two_processes_with_training_norms(data: Path, tmp_path: Path) -> None:
    ranks = run(data, tmp_path / "run", 2)
    for epoch in range(2):
        assert sorted(ranks[0]["seen"][epoch] + ranks[1]["seen"][epoch]) == list(range(13))
    assert ranks[0]["network"] == ranks[1]["network"]
    assert ranks[0]["average"] == ranks[1]["average"]
    assert ranks[0]["written"]
    assert ranks[1]["written"] == []
    assert (tmp_path / "run" / "results.csv").read_text().count("\n") == 3


@pytest.mark.slow
def test_two_processes_train_expanded_weights(data: Path, tmp_path: Path) -> None:
    """Each rank draws and calibrates the new branches itself, to the same numbers; one of them writes."""
    weights = tmp_path / "plain.safetensors"
    save(finder(block="plain", names=["red", "green"]), weights)
    where = "*.bottlenecks.*second*"
    ranks = run(data, tmp_path / "run", 2, weights=str(weights), expand="repvgg", where=where)
    assert ranks[0]["network"] == ranks[1]["network"]
    assert ranks[0]["average"] == ranks[1]["average"]
    assert ranks[0]["written"]
    assert ranks[1]["written"] == []
    kept = load_model(tmp_path / "run" / "last.safetensors")
    assert len([module for module in kept.modules() if isinstance(module, Expanded)]) == 8
