"""Detectors in training, expanded and deploy form: kept, told apart, trained on, folded where they are used."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.detect.data_sets import squares
from tests.detect.lives import SETTINGS, differences, finish, start, state
from tests.detect.photographs import finder
from tests.support import fold_error
from unbranch.detect import Detector, InputError, export, train, validate
from unbranch.detect.checkpoint import load_model, save
from unbranch.detect.recipe import Recipe
from unbranch.detect.schedule import Plan, make_optimizer, set_rates
from unbranch.expand import Expanded, calibrate, expand_
from unbranch.models.yolov5 import YOLOv5

WHERE = "*.bottlenecks.*second*"
X = torch.linspace(-1, 1, 2 * 3 * 64 * 96).reshape(2, 3, 64, 96).mul(50).sin()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    save(finder(block="plain", names=["red", "green"]), file)
    return file


def form_in(file: Path) -> str:
    with safe_open(file, "pt") as stored:
        return stored.metadata()["form"]


@pytest.mark.parametrize("folded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_expanded_network_comes_back(trained: Path, tmp_path: Path, folded: bool) -> None:
    network = load_model(trained)
    expected = network.detect.decode(network.maps(X))
    if folded:
        network.fuse()
    expand_(network, "repvgg", X, where=WHERE)
    calibrate(network, [X])
    file = tmp_path / "wide.safetensors"
    save(network, file)
    assert form_in(file) == "expanded"
    read = load_model(file)
    assert len([m for m in read.modules() if isinstance(m, Expanded)]) == 8
    mine, theirs = network.state_dict(), read.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    detector = Detector(file)
    assert "in expanded form, folded on loading" in detector.notes[0]
    assert fold_error(detector.engine.run(X.numpy()), expected) <= 1e-4
    save(read.fuse(), tmp_path / "deployed.safetensors")
    assert form_in(tmp_path / "deployed.safetensors") == "deploy"
    assert fold_error(load_model(tmp_path / "deployed.safetensors")(X), expected) <= 1e-4


def test_a_half_folded_network_is_not_kept(trained: Path, tmp_path: Path) -> None:
    network = load_model(trained)
    assert isinstance(network, YOLOv5)
    network.neck.switch_to_deploy()
    with pytest.raises(InputError, match="some blocks of the network are folded"):
        save(network, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def settings(trained: Path, **changes: Any) -> dict[str, Any]:
    network = {"channels": [8, 8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    return {
        **SETTINGS,
        "network": network,
        "weights": str(trained),
        "expand": "repvgg",
        "where": WHERE,
        "epochs": 3,
        **changes,
    }


@pytest.mark.slow
def test_it_trains_with_branches_and_resumes_to_the_same(data: Path, trained: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert finish(start(whole, data, **settings(trained))) == 0
    network = load_model(whole / "best.safetensors")
    assert len([m for m in network.modules() if isinstance(m, Expanded)]) == 8
    process = start(broken, data, **settings(trained))
    while process.is_alive() and not (broken / "last.ckpt").exists():
        process.join(0.01)
    process.kill()
    process.join()
    assert finish(start(broken)) == 0
    assert differences(state(whole), state(broken)) == []
    measured = validate(whole / "best.safetensors", data, size=64)
    assert "in expanded form, folded on loading" in measured.notes[0]
    written = json.loads((whole / "results.json").read_text())
    assert measured.metrics.map50 == pytest.approx(written["map50"], abs=1e-3)


@pytest.mark.slow
def test_what_it_left_is_exported_and_trained_on(data: Path, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    first = train(data, folder=tmp_path / "first", quiet=True, **settings(trained, epochs=1))
    pictures = str(data.parent / "images" / "val")
    written = export(first.best, tmp_path / "a.onnx", pictures=pictures)
    assert "expanded form" in written.notes[0]
    weights = export(first.best, tmp_path / "folded.safetensors", pictures=pictures)
    assert "expanded form" in weights.notes[0]
    assert form_in(weights.path) == "deploy"
    with pytest.raises(InputError, match="would take the place of the weights themselves"):
        export(weights.path, weights.path, pictures=pictures)
    tuned = settings(first.best, epochs=1, expand=None, where=None)
    second = train(data, folder=tmp_path / "second", quiet=True, **tuned)
    assert form_in(second.best) == "expanded"


@pytest.mark.slow
def test_folded_weights_train_on_with_new_branches(data: Path, trained: Path, tmp_path: Path) -> None:
    folded = tmp_path / "folded.safetensors"
    save(load_model(trained).fuse(), folded)
    with pytest.raises(InputError, match="in deploy form, and a folded network cannot go back"):
        train(data, folder=tmp_path / "a", quiet=True, **settings(folded, expand=None, where=None))
    assert not (tmp_path / "a").exists()
    result = train(data, folder=tmp_path / "b", quiet=True, **settings(folded, epochs=1))
    assert form_in(result.best) == "expanded"


def test_new_branches_learn_at_a_rate_of_their_own(trained: Path) -> None:
    network = load_model(trained)
    expand_(network, "mobileone", X, where="detect.maps.0")
    optimizer = make_optimizer(network, Plan(10, 3, 8, Recipe(branch_lr=0.25)))
    set_rates(optimizer, Plan(10, 3, 8, Recipe()).at(25))
    learnt = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(learnt) == sorted(map(id, network.parameters()))
    new = {id(p) for m in network.modules() if isinstance(m, Expanded) for p in m.new_parameters()}
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len({rates[i] for i in new}) == 1
    assert {rates[i] * 0.25 for i in rates.keys() - new} == {rates[i] for i in new}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expand": "repvg"}, "recipe 'repvg' is none of repvgg"),
        pytest.param({"where": "head.*"}, r"where='head.\*' selects no convolution", marks=pytest.mark.slow),
        pytest.param(
            {"expand": "repghost", "where": "backbone.stem"},
            "branches.dense.0: RepGhost adds the input itself",
            marks=pytest.mark.slow,
        ),
        ({"expand": None}, "chooses layers for expand; name a recipe too"),
        ({"weights": None}, "adds branches to a trained network: give its weights"),
        ({"recipe": {"branch_lr": -1.0}}, "branch_lr is -1.0; give a number, 0 or more"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    data: Path, trained: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        train(data, folder=tmp_path / "run", quiet=True, **settings(trained, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_expanding_what_has_branches_is_refused(data: Path, trained: Path, tmp_path: Path) -> None:
    network = load_model(trained)
    expand_(network, "repvgg", X, where=WHERE)
    save(network, tmp_path / "wide.safetensors")
    with pytest.raises(InputError, match="already"):
        train(data, folder=tmp_path / "run", quiet=True, **settings(tmp_path / "wide.safetensors"))
    assert not (tmp_path / "run").exists()
