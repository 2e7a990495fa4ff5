"""Files that appear whole or not at all, and what a killed process leaves of them."""

from contextlib import suppress
from pathlib import Path

from unbranch.detect.files import clear_parts, replacing


def test_what_a_killed_process_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "labels.part.png").write_text("the user's")
    (tmp_path / ".hidden.part.png").write_text("the user's")
    with replacing(tmp_path / "labels.png") as part:
        part.write_text("whole")
    part.write_text("whole")  # as if the process had died before the move
    clear_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".hidden.part.png",
        "labels.part.png",
        "labels.png",
    ]
    clear_parts(tmp_path / "absent")


def test_an_error_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with suppress(KeyError), replacing(target) as part:
        part.write_text("half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"
