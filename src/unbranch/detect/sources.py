"""What to look at: pictures, folders, globs and videos, found first and read one by one."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import UInt8

from unbranch.detect.errors import InputError

Pixels: TypeAlias = UInt8[np.ndarray, "_height _width 3"]
Source: TypeAlias = str | os.PathLike[str]

PICTURES = frozenset((".bmp", ".dib", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
VIDEOS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"))

_BEGINNING_AND_END = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND"))
_TAIL = 4096


@dataclass(frozen=True)
class PictureFile:
    """A picture on disk; `name` is its path below what was asked for, and names what is written about it."""

    path: Path
    name: str

    def read(self) -> Pixels:
        """The upright pixels, blue green red. Raises `InputError` where the file is gone, cut off or no
        picture.
        """
        return read_picture(self.path)


@dataclass(frozen=True)
class VideoFile:
    """A video on disk."""

    path: Path
    name: str


@dataclass(frozen=True)
class VideoFrame:
    """Frame `index` of a video, decoded."""

    video: VideoFile
    index: int
    rate: float
    pixels: Pixels

    @property
    def path(self) -> Path:
        """The video's."""
        return self.video.path

    @property
    def name(self) -> str:
        """The video's."""
        return self.video.name

    def read(self) -> Pixels:
        """The pixels that are here already."""
        return self.pixels


def find(source: Source | Sequence[Source]) -> list[PictureFile | VideoFile]:
    """The pictures and videos of a file, a folder (searched to the bottom), a glob, or a list of those,
    sorted.

    Raises `InputError` where there is nothing, or a file of an unknown kind.

    >>> find("photographs/*.jpg")  # doctest: +SKIP
    [PictureFile(path=PosixPath('photographs/bus.jpg'), name='bus.jpg')]
    """
    if not isinstance(source, str | os.PathLike):
        found = [item for part in source for item in find(part)]
        if not found:
            raise InputError("no pictures: the list is empty")
        return _distinct(found)
    path = Path(source)
    if path.is_dir():
        return _below(path)
    if path.is_file():
        return [_item(path, path.name)]
    if any(sign in str(source) for sign in "*?["):
        return _matching(str(source))
    raise InputError(f"{source}: no such file or folder")


def _distinct(items: list[PictureFile | VideoFile]) -> list[PictureFile | VideoFile]:
    """The same items; a name that an earlier one has gets a number, since names become names of files."""
    taken: set[str] = set()
    result: list[PictureFile | VideoFile] = []
    for item in items:
        name, number = Path(item.name), 1
        while str(name) in taken:
            number += 1
            name = Path(item.name).with_stem(f"{Path(item.name).stem}-{number}")
        taken.add(str(name))
        result.append(replace(item, name=str(name)))
    return result


def _below(folder: Path) -> list[PictureFile | VideoFile]:
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in PICTURES | VIDEOS and path.is_file()
    )
    if not paths:
        raise InputError(
            f"{folder}: no pictures or videos in this folder or below ({', '.join(sorted(PICTURES))})"
        )
    return [_item(path, str(path.relative_to(folder))) for path in paths]


def _matching(pattern: str) -> list[PictureFile | VideoFile]:
    paths = sorted(Path(match) for match in glob.glob(pattern, recursive=True) if Path(match).is_file())
    if not paths:
        raise InputError(f"{pattern}: matches no file")
    shared = Path(os.path.commonpath([path.parent for path in paths])) if len(paths) > 1 else paths[0].parent
    return [_item(path, str(path.relative_to(shared))) for path in paths]


def _item(path: Path, name: str) -> PictureFile | VideoFile:
    kind = path.suffix.lower()
    if kind in VIDEOS:
        return VideoFile(path, name)
    if kind in PICTURES:
        return PictureFile(path, name)
    raise InputError(
        f"{path}: neither a picture nor a video by its name; known are {', '.join(sorted(PICTURES | VIDEOS))}"
    )


def read_picture(path: Path) -> Pixels:
    """The pixels of a picture file, upright (EXIF), blue green red, 8 bits.

    Raises `InputError` where the file is missing, empty, cut off, or no picture.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not content:
        raise InputError(f"{path}: the file is empty")
    for beginning, end in _BEGINNING_AND_END:
        if content.startswith(beginning) and end not in content[-_TAIL:]:
            raise InputError(f"{path}: the picture is cut off after {len(content)} bytes")
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise InputError(f"{path}: cannot be decoded: {' '.join(str(error).split())}") from error
    if pixels is None:
        raise InputError(f"{path}: not a picture that can be decoded")
    return np.asarray(pixels)


def frames(video: VideoFile) -> Iterator[VideoFrame]:
    """The frames of a video, in order. Raises `InputError` where it cannot be opened, or ends before its
    time.
    """
    capture = cv2.VideoCapture(str(video.path))
    try:
        if not capture.isOpened():
            raise InputError(f"{video.path}: not a video that can be opened")
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        count = 0
        while True:
            there, pixels = capture.read()
            if not there:
                break
            yield VideoFrame(video, count, rate, np.asarray(pixels))
            count += 1
    finally:
        capture.release()
    if count < promised:
        raise InputError(f"{video.path}: the video ends early, after {count} of {promised} frames")
