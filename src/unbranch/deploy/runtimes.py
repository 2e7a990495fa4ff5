"""What runs a network, each as a call without arguments: torch, torch.compile, ONNX Runtime, OpenVINO."""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.deploy.onnx_file import export_onnx
from unbranch.detect.errors import InputError
from unbranch.runtimes.modules import torch_run
from unbranch.runtimes.sessions import onnx_runtime, openvino
from unbranch.runtimes.timing import Run

RUNTIMES = {
    "torch": "torch eager",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
"""The names that are understood, and how each is written for a reader."""
FILES = ("onnxruntime", "openvino")


@contextmanager
def runs(
    runtime: str, networks: Sequence[nn.Module | Path], inputs: Sequence[Tensor], threads: int = 1
) -> Iterator[list[Run]]:
    """Each network (a module, or the path of an ONNX file) ready to run on `inputs` in one runtime, on `threads`.

    Modules are exported where the runtime reads files. Raises `InputError` for an unknown runtime, and for a
    file given to a runtime that takes modules.
    """
    if runtime not in RUNTIMES:
        raise InputError(f"runtime {runtime!r} is none of {', '.join(RUNTIMES)}")
    known = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if runtime in FILES:
                paths = [
                    _file(network, inputs, Path(folder) / f"{i}.onnx") for i, network in enumerate(networks)
                ]
                make = onnx_runtime if runtime == "onnxruntime" else openvino
                yield [make(path, inputs, threads) for path in paths]
            else:
                yield [_torch(network, inputs, runtime == "compile") for network in networks]
    finally:
        torch.set_num_threads(known)


def _file(network: nn.Module | Path, inputs: Sequence[Tensor], target: Path) -> Path:
    if isinstance(network, Path):
        return network
    export_onnx(network, inputs, target, free_batch=False)
    return target


def _torch(network: nn.Module | Path, inputs: Sequence[Tensor], compiled: bool) -> Run:
    if isinstance(network, Path):
        raise InputError(
            f"{network}: torch runs modules, not files; the runtimes for it are {', '.join(FILES)}"
        )
    model: Any = torch.compile(copy.deepcopy(network)) if compiled else network
    return torch_run(model, inputs)
