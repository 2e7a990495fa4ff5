"""Files appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unbranch.detect.errors import InputError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A name beside `target` to write to (same suffix); it is moved onto `target` at the end, and removed on
    any error.

    Folders above are made. Raises `InputError` where the place cannot be written or the disk is full.

    >>> with replacing(Path("/tmp/example/a.txt")) as part:
    ...     _ = part.write_text("whole")
    >>> Path("/tmp/example/a.txt").read_text()
    'whole'
    """
    part = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error


def clear_parts(folder: Path) -> None:
    """Remove what `replacing` could not, because its process was killed: files on their way to a name in `folder`."""
    for part in folder.glob(f".*.{'[0-9a-f]' * 8}.part*"):
        part.unlink(missing_ok=True)
