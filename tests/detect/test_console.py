"""What a person sees: lines where there is no terminal, a table and a bar where there is one."""

import io
from pathlib import Path

import pytest
from rich.console import Console as Terminal

from tests.detect.data_sets import squares
from tests.detect.lives import SETTINGS
from unbranch.detect.data import check_split, open_spec
from unbranch.detect.plots import draw_boxes
from unbranch.detect.training import run
from unbranch.detect.training.console import Narrator
from unbranch.detect.training.history import History


def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> str:
    stream = io.StringIO()
    console = Terminal(file=stream, force_terminal=terminal, width=140, color_system=None)
    monkeypatch.setattr(run, "Narrator", lambda quiet: Narrator(quiet, console))
    run.train(squares(tmp_path / "data", 8, 4), folder=tmp_path / "run", **{**SETTINGS, "epochs": 2})
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_epochs_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    text = shown(tmp_path, monkeypatch, terminal)
    assert "train: 8 pictures" in text
    assert "anchors reach" in text
    for title in ("objectness", "mAP50-95", "seconds", "red", "green"):
        assert title in text
    assert ("epoch 2 of 2" in text) == terminal
    assert "best epoch" in text


def test_history_drops_what_is_made_again() -> None:
    history = History()
    for epoch in (0, 1, 2, 1):
        losses = {"box": float(epoch), "objectness": 0.0, "class": 0.0}
        history.note(epoch, losses, None, {"lr": 0.1, "seconds": 1.0, "val_seconds": 0.0})
    assert [row["epoch"] for row in history.rows] == [1, 2]
    assert history.best_epoch == 0
    assert not history.stale(1)


def test_training_ends_when_nothing_gets_better() -> None:
    history = History(
        [{"epoch": i + 1.0, "fitness": value} for i, value in enumerate((0.1, 0.5, 0.5, 0.4, 0.3))]
    )
    assert history.best_epoch == 2
    assert history.stale(3)
    assert not history.stale(4)
    assert not history.stale(0)


def test_boxes_are_drawn_and_none_is_fine(tmp_path: Path) -> None:
    split = check_split(open_spec(squares(tmp_path, 2, 1)), "train", 64, "ram")
    pixels = split.held[0].pixels()
    labels = split.labels[0]
    drawn = draw_boxes(pixels, labels.boxes, labels.classes.tolist(), split.names)
    assert bool((drawn != pixels).any())
    assert bool((draw_boxes(pixels, labels.boxes[:0], [], split.names) == pixels).all())
