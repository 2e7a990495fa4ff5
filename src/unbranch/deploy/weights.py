"""Weights as a file of safetensors."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from unbranch.detect.errors import InputError
from unbranch.detect.files import replacing


def save_weights(model: nn.Module, target: Path, about: Mapping[str, str]) -> None:
    """Write the model's tensors under their own names, whole or not at all; `about` becomes the file's metadata.

    Tensors that share memory are written each in full, so that the file loads into any copy of the model.
    Raises `InputError` where the place cannot be written.
    """
    tensors: dict[str, Tensor] = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor)
    }
    with replacing(target) as part:
        save_file(tensors, part, metadata={"format": "pt", **about})


def check_writable(target: Path) -> None:
    """Raise `InputError` where a file of this name could not be written: asked before the work, not after it.

    Nothing is left behind; folders that are missing are made when the file is written.
    """
    if target.is_dir():
        raise InputError(f"{target}: is a folder; name a file")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
