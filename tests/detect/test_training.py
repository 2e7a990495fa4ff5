"""A whole training: what it leaves, that it repeats, resumes after any kill, and says what is wrong."""

import csv
import importlib.util
import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.detect.data_sets import squares
from tests.detect.lives import SETTINGS, differences, finish, rows, start, state
from unbranch.detect import InputError, Plan, export, train, validate
from unbranch.detect.checkpoint import load_extra, load_model

EPOCHS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert finish(start(folder, data, epochs=EPOCHS, **SETTINGS)) == 0
    return folder


def test_a_training_leaves_everything(unbroken: Path) -> None:
    assert {path.name for path in unbroken.iterdir()} == {
        "settings.json", "results.csv", "results.json", "last.ckpt", "last.safetensors", "best.safetensors",
        "train_batch.jpg", "labels.png", "losses.png", "precision_recall.png", "f1.png", "confusion.png",
    }  # fmt: skip
    assert rows(unbroken) == EPOCHS
    extra = load_extra(unbroken / "last.safetensors")
    assert (extra["epoch"], extra["names"], extra["size"]) == (EPOCHS, ["red", "green"], 64)
    assert load_model(unbroken / "best.safetensors").names == ["red", "green"]


def test_the_same_again_is_the_same(data: Path, unbroken: Path, tmp_path: Path) -> None:
    assert finish(start(tmp_path / "again", data, epochs=EPOCHS, **SETTINGS)) == 0
    assert differences(state(unbroken), state(tmp_path / "again")) == []


def test_workers_change_nothing(data: Path, unbroken: Path, tmp_path: Path) -> None:
    assert finish(start(tmp_path / "two", data, epochs=EPOCHS, workers=2, cache="none", **SETTINGS)) == 0
    assert differences(state(unbroken), state(tmp_path / "two")) == []


def test_another_seed_is_another_training(data: Path, unbroken: Path, tmp_path: Path) -> None:
    assert finish(start(tmp_path / "other", data, epochs=EPOCHS, **{**SETTINGS, "seed": 4})) == 0
    assert differences(state(unbroken)["weights"], state(tmp_path / "other")["weights"])


def kill_at(folder: Path, data: Path | None, epoch: int, delay: float, **settings: Any) -> bool:
    """SIGKILL `delay` seconds after the epoch's row has appeared; whether it was still alive then."""
    process = start(folder, data, **settings)
    while process.is_alive() and rows(folder) < epoch:
        time.sleep(0.01)
    process.join(delay)
    alive = process.is_alive()
    process.kill()
    process.join()
    assert not alive or process.exitcode == -signal.SIGKILL
    return alive


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(data: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "epochs": 24}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert finish(start(whole, data, **settings)) == 0
    with (whole / "results.csv").open() as stream:
        pace = max(float(row["seconds"]) + float(row["val_seconds"]) for row in csv.DictReader(stream))
    draw = np.random.default_rng(11)
    kills = 0
    while kills < 10:
        assert rows(broken) < 24, "too few kills before the end"
        begun = (broken / "settings.json").exists()
        target, delay = rows(broken) + int(draw.integers(2)), draw.uniform(0, 1.2) * pace
        kills += (
            kill_at(broken, None, target, delay)
            if begun
            else kill_at(broken, data, target, delay, **settings)
        )
    assert finish(start(broken)) == 0
    assert differences(state(whole), state(broken)) == []
    assert rows(broken) == 24
    best = [load_model(folder / "best.safetensors").state_dict() for folder in (whole, broken)]
    assert differences(dict(best[0]), dict(best[1])) == []
    assert load_extra(whole / "best.safetensors") == load_extra(broken / "best.safetensors")
    assert not list(broken.glob(".*")), "left-overs of a half-written file"


def test_a_finished_training_resumes_to_itself(data: Path, unbroken: Path) -> None:
    before = state(unbroken)
    assert finish(start(unbroken)) == 0
    assert differences(before, state(unbroken)) == []


def test_a_full_disk_is_one_line_and_nothing_is_lost(data: Path, unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    assert kill_at(folder, data, 1, 0.0, epochs=EPOCHS, **SETTINGS)
    kept = {
        name: (folder / name).read_bytes()
        for name in ("last.ckpt", "best.safetensors")
        if (folder / name).exists()
    }
    assert finish(start(folder, most_bytes=100_000)) == 2
    message = folder.with_suffix(".error.txt").read_text()
    assert "cannot be written" in message
    assert "\n" not in message
    for name, content in kept.items():
        assert (folder / name).read_bytes() == content
    assert finish(start(folder)) == 0
    assert differences(state(unbroken), state(folder)) == []


def options(**changes: Any) -> dict[str, Any]:
    return {**SETTINGS, "epochs": 1, "quiet": True, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 100}, "size is 100; give a multiple of 32, such as 128"),
        ({"epochs": 0}, "epochs is 0; give at least 1"),
        ({"epoch": 3}, "no setting 'epoch'; did you mean 'epochs'"),
        ({"precision": "64"}, "precision is '64'; it can be auto, 32"),
        ({"cache": "gpu"}, "cache is 'gpu'; it can be"),
        ({"workers": "many"}, "workers is 'many'; give a number"),
        ({"workers": -1}, "workers is -1; give 0 or more"),
        ({"accelerator": "tpu"}, "accelerator is 'tpu'; it can be"),
        ({"devices": "none"}, "devices is 'none'"),
        ({"recipe": {"mosaics": 1}}, "recipe: no setting 'mosaics'"),
        ({"network": {"block": "acnut"}}, "model: "),
        (
            {"model": "yolov5n6", "size": 96, "network": {}},
            "size is 96; this network needs a multiple of 64, such as 128",
        ),
        ({"recipe": {"lr": "fast"}}, "recipe: lr is 'fast'; give a number"),
        ({"model": "yolov9"}, "model: network: 'yolov9'"),
        ({"weights": "nothing.safetensors"}, "nothing.safetensors: no such file"),
        ({"folder": "/dev/null/run"}, "/dev/null/run/settings.json: cannot be written"),
        ({"folder": "/proc/run"}, "/proc/run/settings.json: cannot be written"),
    ],
)
def test_a_wrong_setting_is_one_line(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        train(data, **{"folder": str(tmp_path / "run"), **options(**changes)})
    assert "\n" not in str(caught.value)


def test_a_used_folder_is_not_overwritten(data: Path, unbroken: Path) -> None:
    with pytest.raises(InputError, match="holds a training already; resume it"):
        train(data, folder=unbroken, **options())


def test_resume_needs_a_training_and_nothing_else(data: Path, unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no training"):
        train(folder=tmp_path, resume=True)
    with pytest.raises(InputError, match="has its own data, model and settings"):
        train(data, folder=unbroken, resume=True)


def test_a_damaged_checkpoint_is_one_line(unbroken: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes((unbroken / "settings.json").read_bytes())
    (tmp_path / "last.ckpt").write_bytes((unbroken / "last.ckpt").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"last\.ckpt is damaged"):
        train(folder=tmp_path, resume=True, quiet=True)


def test_tensorboard_has_a_point_an_epoch(data: Path, tmp_path: Path) -> None:
    history = train(data, folder=tmp_path, **options(tensorboard=True)).history
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path)).Reload()
    for name in ("box", "map50", "lr"):
        points = log.Scalars(name)
        assert [point.step for point in points] == [row["epoch"] for row in history.rows]
        assert [point.value for point in points] == pytest.approx([row[name] for row in history.rows])


def test_tensorboard_is_asked_for_and_absent(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "tensorboard" else found(name)
    )
    with pytest.raises(InputError, match="tensorboard is asked for and not installed"):
        train(data, folder=tmp_path / "run", **options(tensorboard=True))


def test_trained_weights_are_taken_as_far_as_they_fit(data: Path, unbroken: Path, tmp_path: Path) -> None:
    result = train(
        data,
        folder=tmp_path / "tuned",
        **options(weights=str(unbroken / "last.safetensors"), recipe={"lr": 0.0}),
    )
    first, second = load_model(unbroken / "last.safetensors"), load_model(result.last)
    name = "detect.maps.0.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])


def test_validation_of_weights_a_module_and_a_function_agree(data: Path, unbroken: Path) -> None:
    network = load_model(unbroken / "best.safetensors")

    def predictions(images: torch.Tensor) -> torch.Tensor:
        return network.detect.decode(network.maps(images))

    results = [
        validate(weights, data, size=64).metrics
        for weights in (unbroken / "best.safetensors", network, predictions)
    ]
    written = json.loads((unbroken / "results.json").read_text())
    for metrics in results:
        assert metrics.map50 == pytest.approx(written["map50"], abs=1e-3)
        assert metrics.map == pytest.approx(written["map"], abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 65}, "size 65: the network needs a multiple of 32, such as 64"),
        ({"batch": 0}, "batch 0: at least one picture"),
        ({"device": "tpu9"}, "device 'tpu9': not known"),
        ({"device": "cuda:99"}, "device 'cuda:99': this machine has none; use cpu"),
        ({"split": "test"}, "no split 'test'; it has train, val"),
    ],
)
def test_a_measurement_that_cannot_be_made_is_one_line(
    data: Path, unbroken: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        validate(unbroken / "best.safetensors", data, **{"size": 64, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_exported_files_measure_as_the_weights(
    data: Path, unbroken: Path, tmp_path: Path, suffix: str, dynamic: bool
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    pictures = str(data.parent / "images" / "val")
    file = export(unbroken / "best.safetensors", tmp_path / f"a{suffix}", Plan(64, 3, dynamic), pictures).path
    ours, theirs = (validate(w, data, size=64).metrics for w in (unbroken / "best.safetensors", file))
    assert theirs.map50 == pytest.approx(ours.map50, abs=1e-3)
    assert theirs.confusion.tolist() == ours.confusion.tolist()


@pytest.mark.slow
def test_the_weights_of_a_training_are_a_model_to_start_from(
    data: Path, unbroken: Path, tmp_path: Path
) -> None:
    network = {key: value for key, value in options().items() if key != "network"}
    result = train(data, unbroken / "best.safetensors", folder=tmp_path / "next", **network)
    assert load_model(result.last).description.channels == (8, 8, 16, 16, 16)
    assert json.loads((tmp_path / "next" / "settings.json").read_text())["settings"]["weights"]


def test_weights_of_other_classes_are_refused(unbroken: Path, tmp_path: Path) -> None:
    file = squares(tmp_path, 2, 2)
    file.write_text("train: images/train\nval: images/val\nnames: [red, green, blue]\n")
    with pytest.raises(InputError, match="the weights have 2 classes, the data 3"):
        validate(unbroken / "best.safetensors", file, size=64)


@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    data = squares(tmp_path, train=64, val=24)
    result = train(data, folder=tmp_path / "run", **{**options(), "epochs": 40, "size": 96, "batch": 8})
    assert result.metrics.map50 > 0.6
