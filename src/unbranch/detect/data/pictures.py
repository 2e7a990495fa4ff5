"""Decode a picture once, hold it at training size: in memory, on disk, or not at all.

A held picture is found by the digest of its file's bytes, never by its name or date: an edited picture is
decoded anew, a copied or moved one is not.
"""

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from unbranch.detect.errors import InputError
from unbranch.detect.files import replacing
from unbranch.detect.letterbox import place

Kind = Literal["auto", "ram", "disk", "none"]
Pixels: TypeAlias = UInt8[np.ndarray, "_ _ 3"]


class CorruptPictureError(InputError):
    """A file that is no picture, or only part of one."""


def decode(content: bytes, where: str) -> Pixels:
    """The upright RGB pixels of an encoded picture (EXIF orientation applied). Raises CorruptPictureError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on metadata: the pixels are what counts
            with Image.open(io.BytesIO(content)) as picture:
                upright = ImageOps.exif_transpose(picture.convert("RGB") if picture.mode == "P" else picture)
                pixels = np.array(upright.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptPictureError(f"{where} cannot be decoded ({error}); replace or remove it") from error
    return pixels


def shrink(pixels: Pixels, size: int) -> Pixels:
    """The picture resized so that its longer side is `size` pixels, exactly as prediction resizes it."""
    box = place(*pixels.shape[:2], size=size, stride=1)
    if (box.inner_rows, box.inner_columns) == pixels.shape[:2]:
        return pixels
    return cv2.resize(pixels, (box.inner_columns, box.inner_rows), interpolation=cv2.INTER_LINEAR)


def as_tensor(pixels: Pixels) -> UInt8[Tensor, "3 height width"]:
    """The same memory as a (3, height, width) tensor: channels last, which resizing likes."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


@dataclass(frozen=True)
class InMemory:
    """A picture of (height, width) whose training-size pixels stay decoded in memory."""

    height: int
    width: int
    digest: str
    tensor: Tensor

    def pixels(self) -> Tensor:
        """(3, h, w) uint8 at training size."""
        return self.tensor


@dataclass(frozen=True)
class OnDisk:
    """A picture of (height, width) whose training-size pixels lie in a `.npy` file."""

    height: int
    width: int
    digest: str
    file: Path

    def pixels(self) -> Tensor:
        """(3, h, w) uint8 at training size."""
        return as_tensor(np.load(self.file, allow_pickle=False))


@dataclass(frozen=True)
class InFile:
    """A picture of (height, width) that is decoded each time it is asked for."""

    height: int
    width: int
    digest: str
    file: Path
    size: int

    def pixels(self) -> Tensor:
        """(3, h, w) uint8 at training size. Raises CorruptPictureError where the file has changed for the
        worse."""
        return as_tensor(shrink(decode(self.file.read_bytes(), str(self.file)), self.size))


Held: TypeAlias = InMemory | OnDisk | InFile
"""A picture that can be had at training size."""


@dataclass(frozen=True)
class Keeper:
    """Decodes pictures and holds them at `size` pixels.

    kind: "ram", "disk" (in `folder`), or "none". See `choose` for "auto".
    """

    size: int
    kind: Kind
    folder: Path

    def hold(self, path: Path) -> Held:
        """Read, check and hold one picture. Raises CorruptPictureError, and OSError where the file cannot be
        read."""
        content = path.read_bytes()
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        if self.kind == "disk":
            return self._on_disk(path, content, digest)
        pixels = decode(content, str(path))
        height, width = pixels.shape[:2]
        if self.kind == "none":
            return InFile(height, width, digest, path, self.size)
        return InMemory(height, width, digest, as_tensor(shrink(pixels, self.size)))

    def _on_disk(self, path: Path, content: bytes, digest: str) -> OnDisk:
        """Two files: the pixels, and (written last) the picture's own height and width."""
        file = self.folder / digest[:2] / f"{digest}-{self.size}.npy"
        shape_file = file.with_suffix(".shape.npy")
        if shape_file.is_file():
            height, width = (int(side) for side in np.load(shape_file, allow_pickle=False))
            return OnDisk(height, width, digest, file)
        pixels = decode(content, str(path))
        _write_array(file, np.ascontiguousarray(shrink(pixels, self.size)))
        _write_array(shape_file, np.array(pixels.shape[:2]))
        return OnDisk(pixels.shape[0], pixels.shape[1], digest, file)


def _write_array(file: Path, array: np.ndarray) -> None:
    """A reader never sees half an array, whoever writes beside us."""
    with replacing(file) as part, part.open("wb") as stream:
        np.save(stream, array)


def cache_folder() -> Path:
    """Where decoded pictures lie unless told otherwise: `$XDG_CACHE_HOME/unbranch`, else
    `~/.cache/unbranch`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unbranch" / "pictures"


def choose(pictures: int, size: int, sharers: int = 1) -> Kind:
    """Memory where all pictures at `size` pixels take less than half of what is free, else the disk.

    sharers: how many processes of this machine hold the same pictures.
    """
    needed = pictures * sharers * 3 * size * size
    return "ram" if needed < 0.5 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") else "disk"
