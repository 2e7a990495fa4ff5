"""`unbranch expand`: what it prints, what it writes, and how bad input ends."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import unbranch
from tests.cli.test_fold import run
from tests.detect.photographs import finder, picture
from tests.support import fold_error, randomize
from unbranch.cli.errors import WRONG_INPUT
from unbranch.detect import load_model, save
from unbranch.expand import RECIPES

MODELS = """
from torch import nn


def net():
    last = nn.Conv2d(8, 8, 4, padding="same", dilation=2, padding_mode="circular")
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), last)
"""


@pytest.fixture
def folder(tmp_path: Path, generator: torch.Generator) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    model = plain()
    randomize(model, generator, torch.randn(2, 3, 21, 17, generator=generator))
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    np.save(tmp_path / "inputs.npy", torch.randn(4, 3, 21, 17, generator=generator).numpy())
    np.save(tmp_path / "nothing.npy", np.zeros((0, 3, 21, 17), np.float32))
    np.save(tmp_path / "channels.npy", np.ones((4, 5, 21, 17), np.float32))
    np.save(tmp_path / "number.npy", np.float32(3))
    np.save(tmp_path / "complex.npy", np.ones((4, 3, 21, 17), np.complex64))
    return tmp_path


def plain() -> nn.Sequential:
    """Its last layer is one of the few that RepVGG's branches cannot express."""
    last = nn.Conv2d(8, 8, 4, padding="same", dilation=2, padding_mode="circular")
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), last).eval()


def given(folder: Path) -> tuple[str, ...]:
    return (f"{folder}/models.py:net", "-w", f"{folder}/net.safetensors")


def test_it_lists_the_recipes() -> None:
    out, _ = run("expand", "--list")
    assert [line.split()[0] for line in out.splitlines()] == list(RECIPES)
    assert "repvgg         3x3 → norm + 1x1 → norm + x → norm" in out
    assert "1x1 → norm → filled border → mean → norm" in out


def test_it_writes_what_load_reads(folder: Path) -> None:
    target = folder / "wide.safetensors"
    out, err = run("expand", *given(folder), "-o", target, "--calibrate", folder / "inputs.npy")
    assert "expanded 1 convolution\n  0\n" in out
    assert "left plain: 3: a branch would have circular padding" in out
    assert "2 norms calibrated" in err
    assert f"wrote {target}" in err
    first, second = plain(), plain()
    unbranch.load(first, folder / "net.safetensors")
    assert unbranch.load(second, target).expanded == ("0",)
    x = torch.from_numpy(np.load(folder / "inputs.npy"))
    with torch.no_grad():
        assert fold_error(second(x), first(x)) <= 1e-5
    report = json.loads(run("expand", *given(folder), "--json")[0])
    assert (report["layers"], report["certificate"]["passed"], report["written"]) == (["0"], True, None)
    _, err = run(
        "reparameterize", f"{folder}/models.py:net", "-w", target, "-o", folder / "folded.safetensors"
    )
    assert "given the branches that the file has" in err
    assert set(load_file(folder / "folded.safetensors")) == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_a_detector_stays_one(tmp_path: Path) -> None:
    save(finder(block="plain"), tmp_path / "plain.safetensors")
    for seed in range(3):
        cv2.imwrite(str(tmp_path / f"{seed}.jpg"), picture(seed=seed))
    target = tmp_path / "wide.safetensors"
    run(
        "expand",
        tmp_path / "plain.safetensors",
        "--where",
        "*.bottlenecks.*second*",
        "-o",
        target,
        "--calibrate",
        tmp_path,
    )
    wide, first = load_model(target), load_model(tmp_path / "plain.safetensors")
    assert wide.description == first.description
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert fold_error(wide(x), first(x)) <= 1e-4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--recipe", "repvg"), "recipe 'repvg' is none of repvgg, repconvn, mobileone"),
        (("--where", "layer9.*"), "where='layer9.*' selects no convolution"),
        (("--where", "3"), "3: a branch would have circular padding"),
        (("--calibrate", "@nothing.npy"), "holds no data"),
        (("--calibrate", "@absent.npy"), "there is no such file"),
        (("--calibrate", "@channels.npy"), "channels.npy: the model cannot run on it: Given groups=1"),
        (("--calibrate", "@number.npy"), "holds a single number"),
        (("--calibrate", "@complex.npy"), "holds complex numbers"),
        (("--calibrate", "@"), "pictures calibrate a detector"),
        (("-o", "@out.pth"), "weights are written as .safetensors"),
    ],
)
def test_bad_input(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    before = sorted(folder.iterdir())
    wanted = arguments if "-o" in arguments else (*arguments, "-o", "@wide.safetensors")
    out, err = run(
        "expand", *given(folder), *(a.replace("@", f"{folder}/") for a in wanted), code=WRONG_INPUT
    )
    assert (out, err.count("\n"), err[:7]) == ("", 1, "error: ")
    assert says in err
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


def test_no_model_and_twice(folder: Path) -> None:
    assert "no MODEL" in run("expand", code=WRONG_INPUT)[1]
    target = folder / "wide.safetensors"
    run("expand", *given(folder), "-o", target)
    again = ("expand", given(folder)[0], "-w", target, "--where", "0", "-o", folder / "wider.safetensors")
    assert "it is a branch of 0 already" in run(*again, code=WRONG_INPUT)[1]
    assert not (folder / "wider.safetensors").exists()
