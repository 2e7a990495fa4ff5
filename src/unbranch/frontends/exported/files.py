"""`.pt2` files: read whole or refused, written whole or not at all."""

import io
import logging
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram


class ProgramFileError(ValueError):
    """A file that holds no exported program that can be read; the message is one line."""


READING_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AssertionError,
    AttributeError,
    ArithmeticError,
    EOFError,
    ImportError,
    OSError,
    zipfile.BadZipFile,
)
"""What torch may raise for a file that it does not understand."""


def load_exported(path: str | os.PathLike[str]) -> ExportedProgram:
    """The program in a ``.pt2`` file.

    Raises:
        FileNotFoundError: there is no such file.
        ProgramFileError: it is truncated, or holds something else.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "relu.pt2"
        >>> save_exported(torch.export.export(torch.nn.ReLU(), (torch.zeros(2),)), path)
        >>> load_exported(path).module()(torch.ones(2)).shape
        torch.Size([2])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ProgramFileError(
            f"{path} is no .pt2 file, or a truncated one: it does not end as a zip archive does"
        )
    with _checked(path) as archive:
        damaged = archive.testzip()
        names = [name.rpartition("/")[2] for name in archive.namelist()]
    if damaged is not None:
        raise ProgramFileError(f"{path} is damaged: {damaged} does not match its checksum")
    if not {"archive_format", "serialized_exported_program.json"} & set(names):
        raise ProgramFileError(
            f"{path} is a zip archive without an exported program: was it written by torch.export.save?"
        )
    try:
        with _quiet():
            program = torch.export.load(path)
    except READING_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ProgramFileError(f"{path} holds no exported program that this torch reads: {reason}") from error
    return program


@contextmanager
def _checked(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise ProgramFileError(f"{path} is damaged: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch logs a traceback before it raises; the error says enough."""
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def saved(program: ExportedProgram, extra_files: dict[str, Any] | None = None) -> memoryview:
    """What a ``.pt2`` file holds; torch's own writer of files ends the process where the disk is full."""
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=extra_files)
    return content.getbuffer()


def save_exported(program: ExportedProgram, path: str | os.PathLike[str]) -> None:
    """Write a ``.pt2`` file, elsewhere first, so that there is never half a file at ``path``.

    Raises:
        ValueError: the name does not end in ``.pt2``, by which torch knows its files.
        OSError: there is no place for it, or no room.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"{path}: the file of an exported program ends in .pt2")
    content = saved(program)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        temporary = Path(folder) / path.name
        temporary.write_bytes(content)
        os.replace(temporary, path)
