"""From a file to named tensors, without running anything that the file holds."""

import argparse
import pickle
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unbranch.checkpoints.errors import CheckpointError

# Where training loops put the weights inside a checkpoint, averaged ones first.
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "params_ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "params",
    "weights",
)

# What parallel, compiled, averaged and Lightning models put before every key.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")

# How the two kinds of torch file begin: a zip archive, and before torch 1.6 a pickled magic number.
_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What torch.load raises on a cut or garbled file: each step of reading one may fail in its own way.
_DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


class Weights(NamedTuple):
    """The tensors of a file and the path of wrappers under which they lay, such as ``"state_dict_ema"``."""

    tensors: dict[str, Tensor]
    wrapper: str


def read_weights(path: Path) -> Weights:
    """The state dict that a ``.safetensors`` or a torch file holds, on the CPU, in the file's own dtypes.

    Raises CheckpointError, in one line, for no file, a damaged one, and one that holds no named tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            opening = file.read(len(_LEGACY))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix == ".safetensors":
        return Weights(_read_safetensors(path), "")
    if not opening.startswith(_ZIP) and opening != _LEGACY:
        raise CheckpointError(f"{path}: neither a torch checkpoint nor a .safetensors file")
    content = _read_torch(path)
    found = next(_search(content, ()), None)
    if found is None:
        raise CheckpointError(
            f"{path}: holds no state dict (a {type(content).__name__}); save model.state_dict()"
        )
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged, or no safetensors file{_reason(error)}") from error


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\w[\w.]*\.\w+)", str(error))
        if foreign:
            raise CheckpointError(
                f"{path}: holds a pickled {foreign[1]}, and objects other than tensors are not read: "
                "save model.state_dict()"
            ) from error
        raise CheckpointError(f"{path}: damaged torch checkpoint{_reason(error)}") from error
    except _DAMAGE as error:
        raise CheckpointError(f"{path}: damaged or truncated torch checkpoint{_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first sentence of the reader's own words, in brackets."""
    first = re.split(r"\. |\n", str(error).strip())[0]
    return f" ({first[:120]})" if first else ""


def _search(content: Any, path: tuple[str, ...]) -> Iterator[Weights]:
    """Named tensors, those in wrappers first, in the wrappers' order."""
    if not isinstance(content, Mapping):
        return
    for name in WRAPPERS:
        if name in content:
            yield from _search(content[name], (*path, name))
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield Weights(tensors, ".".join(path))


def prefix_lengths(keys: Collection[str], prefixes: tuple[str, ...] = PREFIXES) -> Iterator[int]:
    """How many leading characters may be shared prefixes of wrappers: 0, then one prefix more at a time."""
    cut = 0
    yield cut
    while keys:
        shared = next((p for p in prefixes if all(key.startswith(p, cut) for key in keys)), None)
        if shared is None:
            return
        cut += len(shared)
        yield cut
