"""`unbranch train` and `unbranch val`: the options reach the functions, and mistakes are said."""

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.detect.data_sets import squares
from tests.detect.lives import TINY
from unbranch.cli import train, val
from unbranch.cli.pairs import pairs
from unbranch.detect.errors import InputError

app = typer.Typer()
app.command("train")(train.command)
app.command("val")(val.command)
RUN = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
NETWORK = [word for name, value in TINY.items() for word in ("--network", f"{name}={value}")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("verbs")
    data = squares(root / "data")
    words = ["--epochs", "1", "--size", "64", "--batch", "4", "--accelerator", "cpu", "--workers", "0"]
    words += ["--recipe", "mosaic=0.5", "--devices", "1", "--precision", "32", *NETWORK]
    result = RUN.invoke(app, ["train", "--data", str(data), "--out", str(root / "run"), *words])
    assert result.exit_code == 0, result.output
    assert "train: 12 pictures" in result.output
    return data, root / "run"


def test_the_options_are_kept(trained: tuple[Path, Path]) -> None:
    kept = json.loads((trained[1] / "settings.json").read_text())["settings"]
    assert (kept["epochs"], kept["size"], kept["network"], kept["devices"]) == (1, 64, TINY, 1)
    assert kept["recipe"]["mosaic"] == 0.5


def test_resume_takes_no_settings(trained: tuple[Path, Path]) -> None:
    out = str(trained[1])
    assert RUN.invoke(app, ["train", "--out", out, "--resume"]).exit_code == 0
    refused = RUN.invoke(app, ["train", "--out", out, "--resume", "--epochs", "9"])
    assert refused.exit_code == 1
    assert "a resumed training has its own data, model and settings" in str(refused.exception)


def test_val_prints_a_table_and_keeps_figures(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = trained
    words = ["--data", str(data), "--size", "64", "--out", str(tmp_path)]
    result = RUN.invoke(app, ["val", str(run / "best.safetensors"), *words])
    assert result.exit_code == 0, result.output
    for text in ("mAP50-95", "red", "green", "ms a picture", "folded on loading"):
        assert text in result.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json", "precision_recall.png", "f1.png", "confusion.png",
    }  # fmt: skip


def test_pairs_are_literals_lists_and_text() -> None:
    given = ["block=repvgg", "depths=[1, 2]", "lr=0.1", "block2={kind: repvgg, shortcut: null}", "se=null"]
    given += ["pretrained=true", "eps=1e-3", "size=(3, 4)", "name=a=b", "quoted='7'", "none=None", "empty="]
    assert pairs(given, "--network") == {
        "block": "repvgg", "depths": [1, 2], "lr": 0.1, "block2": {"kind": "repvgg", "shortcut": None},
        "se": None, "pretrained": True, "eps": 1e-3, "size": (3, 4), "name": "a=b", "quoted": "7", "none": None, "empty": "",
    }  # fmt: skip
    assert pairs(None, "--network") == {}


@pytest.mark.parametrize("text", ["block", "=3", "a=[", "a b=3", "a={b: [}"])
def test_a_wrong_pair_is_said(text: str) -> None:
    with pytest.raises(InputError, match=f"^--network {re.escape(text)}: "):
        pairs([text], "--network")
