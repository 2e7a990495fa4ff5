"""Trainings in processes of their own, which tests may kill, and verbs where little may be written."""

import ctypes
import json
import resource
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from typer.testing import CliRunner

TINY = {"channels": [8, 8, 16, 16, 16], "depths": [1, 1, 1, 1], "neck_depth": 1}
SETTINGS: dict[str, Any] = {
    "size": 64, "batch": 4, "seed": 3, "network": TINY, "precision": "32", "accelerator": "cpu", "patience": 0,
}  # fmt: skip

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["unbranch.detect.training", "unbranch.detect.plots", "unbranch.cli"])

CAPABILITIES_V3 = 0x20080522
PASSES_PERMISSIONS = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root writes anywhere


class Outcome(NamedTuple):
    """What a verb ended with, and what it wrote."""

    code: int
    out: str
    err: str


def live(folder: str, data: str | None, settings: dict[str, Any], most_bytes: int | None = None) -> None:
    """Train, or resume where `data` is None; an error's line goes into error.txt beside the folder."""
    from unbranch.detect import InputError
    from unbranch.detect.training import train

    torch.set_num_threads(1)
    note = Path(folder).with_suffix(".error.txt")
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        train(data, folder=folder, resume=data is None, quiet=True, **settings)
    except InputError as error:
        note.write_text(str(error))
        raise SystemExit(2) from error


def start(
    folder: Path, data: Path | None = None, most_bytes: int | None = None, **settings: Any
) -> BaseProcess:
    """Begin a training, or go on with one."""
    process = _CONTEXT.Process(target=live, args=(str(folder), data and str(data), settings, most_bytes))
    process.start()
    return process


def finish(process: BaseProcess) -> int | None:
    """Wait for its end; gives the exit code."""
    process.join(300)
    return process.exitcode


def rows(folder: Path) -> int:
    """How many epochs results.csv tells of."""
    file = folder / "results.csv"
    return len(file.read_text().splitlines()) - 1 if file.is_file() else 0


def state(folder: Path) -> dict[str, Any]:
    """Everything of `last.ckpt` that counts: weights, average, optimizer, history without the times."""
    content = torch.load(folder / "last.ckpt", weights_only=True)
    history = [
        {name: value for name, value in row.items() if "seconds" not in name}
        for row in content["unbranch"]["history"]
    ]
    return {
        "weights": content["state_dict"], "optimizer": content["optimizer_states"],
        "history": json.dumps(history), "step": content["global_step"],
    }  # fmt: skip


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two nested states differ, to the bit."""
    if isinstance(first, dict):
        found = [] if set(first) == set(second) else [f"{where}: keys"]
        return found + [
            d
            for key in first
            if key in second
            for d in differences(first[key], second[key], f"{where}/{key}")
        ]
    if isinstance(first, list | tuple):
        pairs = enumerate(zip(first, second, strict=True))
        return [d for index, (a, b) in pairs for d in differences(a, b, f"{where}/{index}")]
    equal = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    return [] if equal else [where]


def bound_by_permissions() -> None:
    """Make the permissions of files count for root too, in this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, held = (ctypes.c_uint32 * 2)(CAPABILITIES_V3, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, held):
        raise OSError(ctypes.get_errno(), "capget")
    held[0] &= ~PASSES_PERMISSIONS
    if libc.capset(header, held):
        raise OSError(ctypes.get_errno(), "capset")


def _verb(answer: Connection, words: tuple[str, ...], most_bytes: int | None) -> None:
    from unbranch.cli import app

    torch.set_num_threads(1)
    bound_by_permissions()
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, words)
    fault = "" if isinstance(result.exception, SystemExit | None) else repr(result.exception)
    answer.send((result.exit_code, result.stdout, result.stderr + fault))


def verb(*words: object, most_bytes: int | None = None) -> Outcome:
    """`unbranch WORDS` in a process of its own, which permissions bind and in which no file may be longer."""
    mine, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_verb, args=(theirs, tuple(map(str, words)), most_bytes))
    process.start()
    theirs.close()
    answer = mine.recv()
    process.join()
    return Outcome(*answer)
