"""What is found, how it is named, and a clear line for each file that cannot be read."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.detect.photographs import picture, write_video
from unbranch.detect.errors import InputError
from unbranch.detect.sources import PictureFile, VideoFile, find, frames, read_picture


def fill(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), picture(seed=seed))


def test_a_folder_is_searched_to_the_bottom(tmp_path: Path) -> None:
    fill(tmp_path, "b.jpg", "a.PNG", "deep/er/c.bmp")
    write_video(tmp_path / "film.avi", 2)
    (tmp_path / "notes.txt").write_text("no picture")
    found = find(tmp_path)
    assert [item.name for item in found] == ["a.PNG", "b.jpg", "deep/er/c.bmp", "film.avi"]
    assert [type(item) for item in found] == [PictureFile, PictureFile, PictureFile, VideoFile]


def test_globs_files_and_lists(tmp_path: Path) -> None:
    fill(tmp_path, "x/a.jpg", "y/a.jpg", "y/b.png")
    assert [item.name for item in find(str(tmp_path / "*" / "*.jpg"))] == ["x/a.jpg", "y/a.jpg"]
    assert [item.name for item in find(tmp_path / "y" / "b.png")] == ["b.png"]
    assert [item.name for item in find(str(tmp_path / "**" / "a.jpg"))] == ["x/a.jpg", "y/a.jpg"]


def test_equal_names_are_kept_apart(tmp_path: Path) -> None:
    """They name files that are written: none may overwrite another's."""
    fill(tmp_path, "x/a.jpg", "y/a.jpg", "z/a.jpg")
    found = find([tmp_path / side / "a.jpg" for side in "xyz"])
    assert [item.name for item in found] == ["a.jpg", "a-2.jpg", "a-3.jpg"]


def test_nothing_found_is_said(tmp_path: Path) -> None:
    for source, message in [
        (tmp_path / "absent.jpg", "no such file or folder"),
        (tmp_path, "no pictures or videos"),
        (f"{tmp_path}/*.jpg", "matches no file"),
        ([], "the list is empty"),
    ]:
        with pytest.raises(InputError, match=message):
            find(source)
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match=r"notes\.txt: neither a picture nor a video"):
        find(tmp_path / "notes.txt")


def test_pixels_are_blue_green_red(tmp_path: Path) -> None:
    pixels = picture()
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    assert np.array_equal(read_picture(tmp_path / "a.png"), pixels)


def test_grey_deep_and_transparent_pictures_become_three_bytes(tmp_path: Path) -> None:
    grey = picture()[..., 0]
    deep = picture().astype(np.uint16) * 257
    transparent = np.dstack((picture(), np.full((48, 64), 7, np.uint8)))
    for pixels in (grey, deep, transparent):
        cv2.imwrite(str(tmp_path / "a.png"), pixels)
        read = read_picture(tmp_path / "a.png")
        assert (read.shape, read.dtype) == ((48, 64, 3), np.uint8)


def test_names_beyond_ascii(tmp_path: Path) -> None:
    (tmp_path / "übung 写真.png").write_bytes(cv2.imencode(".png", picture())[1].tobytes())
    assert read_picture(tmp_path / "übung 写真.png").shape == (48, 64, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0, 1, 10, 0.5, 0.98])
def test_cut_off_pictures(tmp_path: Path, suffix: str, kept: float) -> None:
    content = cv2.imencode(suffix, picture(480, 640))[1].tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    with pytest.raises(
        InputError, match=r"a\.\w+: (the file is empty|the picture is cut off|not a picture)"
    ) as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)


def test_whole_pictures_with_trailing_bytes_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(cv2.imencode(".jpg", picture())[1].tobytes() + b"\n" * 100)
    assert read_picture(tmp_path / "a.jpg").shape == (48, 64, 3)


def test_what_only_looks_like_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(InputError, match="not a picture that can be decoded"):
        read_picture(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="cannot be read"):
        read_picture(tmp_path / "gone.jpg")
    with pytest.raises(InputError, match="cannot be read"):
        read_picture(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_picture_without_permission(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    (tmp_path / "a.jpg").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read_picture(tmp_path / "a.jpg")


def test_videos_frame_by_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 5, "mp4v")
    film = VideoFile(tmp_path / "a.mp4", "a.mp4")
    seen = list(frames(film))
    assert [frame.index for frame in seen] == [0, 1, 2, 3, 4]
    assert seen[0].rate == pytest.approx(10)
    assert abs(seen[3].pixels.astype(int) - picture(seed=3)).mean() < 12


def test_a_video_that_ends_early_gives_what_it_has_and_says_so(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", 40)
    content = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(content[: len(content) // 2])
    seen = []
    with pytest.raises(InputError, match=r"ends early, after \d+ of 40 frames"):
        seen.extend(frames(VideoFile(tmp_path / "a.avi", "a.avi")))
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="not a video that can be opened"):
        list(frames(VideoFile(tmp_path / "b.mp4", "b.mp4")))
