"""ONNX files in ONNX Runtime and in OpenVINO, each ready as a call without arguments."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from unbranch.runtimes.timing import Run


def open_session(path: Path, threads: int = 1) -> Any:
    """ONNX Runtime's session on the CPU, its threads asleep while it has nothing to do.

    Threads that spin would take the cores from whatever is timed beside them.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_runtime(path: Path, inputs: Sequence[Tensor], threads: int) -> Run:
    """The file on ``inputs`` in ONNX Runtime."""
    session = open_session(path, threads)
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, inputs, strict=True)}
    return lambda: session.run(None, feed)


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's core, one for the whole process and never given up.

    Its CPU plugin lends the calling thread a signal stack and frees it in its destructor: after that, the first
    signal that Python handles there (torch's data loaders listen for the end of every child process) kills the
    process.
    """
    import openvino as ov

    return ov.Core()


def openvino(path: Path, inputs: Sequence[Tensor], threads: int) -> Run:
    """The file on ``inputs`` in OpenVINO, one stream, float32."""
    settings = {
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino_core()
    request = core.compile_model(core.read_model(str(path)), "CPU", settings).create_infer_request()
    arrays = [tensor.detach().cpu().numpy() for tensor in inputs]
    return lambda: request.infer(arrays)
