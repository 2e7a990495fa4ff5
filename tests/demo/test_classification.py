"""The demo on a few digits: repeatable, complete, and honest when it does not pass."""

import json
from pathlib import Path

import pytest
import torch

from tests.support import randomize
from unbranch.blocks import Block
from unbranch.demo.classification.digits import Digits, distorted, load_digits
from unbranch.demo.classification.road import kernels, run
from unbranch.demo.classification.training import network, train

FILES = {
    "branched.safetensors", "folded.onnx", "folded.safetensors", "kernels.png", "predictions.png", "results.json",
    "results.md", "times.png",
}  # fmt: skip


def few(count: int, generator: torch.Generator) -> Digits:
    """Noise with labels."""
    labels = torch.arange(count) % 10
    pictures = torch.randn(count, 1, 28, 28, generator=generator)
    return Digits(pictures, labels, pictures, labels)


def test_training_is_the_same_every_time_and_leaves_settings_alone(generator: torch.Generator) -> None:
    digits = few(200, generator)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second = train(digits, 2, seed=3), train(digits, 2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    other = train(digits, 2, seed=4)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_distortion_keeps_pictures_in_place(generator: torch.Generator) -> None:
    pictures = torch.zeros(64, 1, 28, 28)
    pictures[:, :, 10:18, 10:18] = 1
    found = distorted(pictures, generator)
    assert found.shape == pictures.shape
    assert not torch.equal(found[0], found[1])
    # The square's centre of mass, 13.5, moves by the two pixels that are allowed and no more.
    rows = (found.sum((1, 3)) * torch.arange(28.0)).sum(1) / found.sum((1, 2, 3))
    assert (rows - 13.5).abs().max() < 2.6


def test_the_kernels_of_the_branches_add_up(generator: torch.Generator) -> None:
    model = network().eval()
    randomize(model, generator, torch.randn(4, 1, 28, 28, generator=generator))
    branches, kernel = kernels(model)
    assert list(branches) == ["3x3 branch", "1x1 branch", "identity branch"]
    torch.testing.assert_close(torch.stack(list(branches.values())).sum(0), kernel, rtol=1e-5, atol=1e-5)
    assert any(isinstance(module, Block) for module in model.modules())
    model.switch_to_deploy()
    with pytest.raises(TypeError, match="deploy form"):
        kernels(model)


@pytest.mark.slow
def test_the_road_is_complete_and_says_that_one_epoch_is_not_enough(tmp_path: Path) -> None:
    outcome = run(tmp_path / "demo", epochs=1, pairs=10)
    assert {path.name for path in (tmp_path / "demo").iterdir()} == FILES
    assert outcome.certificate
    assert outcome.onnx_certificate
    assert outcome.agreeing == outcome.tested == 1000
    assert outcome.accuracy == outcome.accuracy_branched
    assert outcome.report.after.ops < outcome.report.before.ops / 2
    data = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert data["passed"] is outcome.passed is (outcome.accuracy >= 0.98)
    assert sorted(data["milliseconds"]) == ["onnxruntime", "torch"]
    text = (tmp_path / "demo" / "results.md").read_text()
    assert "same prediction on 1000 of 1000" in text
    for name in ("kernels", "predictions", "times"):
        assert (tmp_path / "demo" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_digits_are_split_alike_and_apart() -> None:
    first = load_digits()
    assert first.train.shape == (4000, 1, 28, 28)
    assert first.test.shape == (1000, 1, 28, 28)
    assert torch.bincount(first.train_labels).tolist() == [400] * 10
    assert torch.bincount(first.test_labels).tolist() == [100] * 10
    assert abs(float(first.train.mean())) < 1e-4
    assert abs(float(first.train.std()) - 1) < 1e-4
    seen = {tuple(picture.flatten().tolist()) for picture in first.train}
    assert sum(tuple(picture.flatten().tolist()) in seen for picture in first.test) == 0
