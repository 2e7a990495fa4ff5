"""What runs a network: PyTorch, ONNX Runtime or OpenVINO, behind one interface.

An engine says what its file promises (`Signature`) and maps (N, 3, rows, columns) in 0..1 to its output
tensor. It may be called from several threads at once. `spread(n)` gives an engine for n callers, each on one
core: many pictures go faster through a processor that way than one after another on all cores.
"""

import ast
import copy
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unbranch.detect.checkpoint import load_model
from unbranch.detect.errors import InputError
from unbranch.detect.forms import form_of
from unbranch.models.yolo import YOLO
from unbranch.runtimes.sessions import openvino_core

Output: TypeAlias = Literal["predictions", "scores", "detections"]
"""predictions: (N, total, 5 + classes) as YOLOv5. scores: (N, 4 + classes, total), as later YOLOs.
detections: (found, 7).
"""

OUTPUTS: tuple[Output, ...] = ("predictions", "scores", "detections")


@dataclass(frozen=True)
class Signature:
    """What a network file promises: class names, stride, fixed input (rows, columns) and batch where they are
    fixed.
    """

    names: tuple[str, ...]
    stride: int
    size: tuple[int, int] | None = None
    batch: int | None = None
    output: Output = "predictions"


@runtime_checkable
class Engine(Protocol):
    """A network that can be run; `notes` are lines for the user (what was done to the weights on loading)."""

    signature: Signature
    notes: tuple[str, ...]

    def run(self, images: Float[np.ndarray, "n 3 rows columns"]) -> Tensor:
        """The network's output for pictures in 0..1, float32, on the CPU."""
        ...

    def spread(self, callers: int) -> "Engine":
        """An engine for that many callers at once; itself where it takes only one."""
        ...


class TorchEngine:
    """A `YOLO` in eval mode on a device; one caller at a time, on all cores.

    Weights in training form are folded first, on a copy where the module is the caller's own, and `notes` say
    so.
    """

    def __init__(self, model: YOLO[Any], device: str = "cpu", notes: tuple[str, ...] = ()) -> None:
        self.device = torch_device(device)
        self.model = model.to(self.device).eval()
        self.signature = Signature(tuple(model.names), model.stride)
        self.notes = notes

    def run(self, images: Float[np.ndarray, "n 3 rows columns"]) -> Tensor:
        """See `Engine`."""
        like = next(self.model.parameters())
        with torch.inference_mode():
            return self.model(torch.from_numpy(images).to(like.device, like.dtype)).float().cpu()

    def spread(self, callers: int) -> Self:
        """See `Engine`."""
        return self


class OnnxEngine:
    """An ONNX file in ONNX Runtime, on the CPU; `threads` of 0 means all cores."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except _onnx_runtime_errors() as error:
            raise InputError(f"{path}: ONNX Runtime cannot read it: {_one_line(error)}") from error
        self.path = path
        self.notes: tuple[str, ...] = ()
        entry, result = self.session.get_inputs()[0], self.session.get_outputs()[0]
        self.input = entry.name
        about = self.session.get_modelmeta().custom_metadata_map
        self.signature = read_signature(path, about, entry.shape, result.shape)

    def run(self, images: Float[np.ndarray, "n 3 rows columns"]) -> Tensor:
        """See `Engine`."""
        return torch.from_numpy(np.asarray(self.session.run(None, {self.input: images})[0]))

    def spread(self, callers: int) -> "OnnxEngine":
        """See `Engine`."""
        return OnnxEngine(self.path, threads=1) if callers > 1 else self


class OpenVinoEngine:
    """An OpenVINO file (`.xml`, its `.bin` beside it) on the CPU."""

    def __init__(self, path: Path, callers: int = 1) -> None:
        core = openvino_core()
        hint = "THROUGHPUT" if callers > 1 else "LATENCY"
        settings = {"PERFORMANCE_HINT": hint, "NUM_STREAMS": str(callers), "INFERENCE_PRECISION_HINT": "f32"}
        try:
            model = core.read_model(str(path))
            self.compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise InputError(f"{path}: OpenVINO cannot read it: {_one_line(error)}") from error
        self.path = path
        self.notes: tuple[str, ...] = ()
        about = {
            key: str(model.get_rt_info(["model_info", key]).value)
            for key in ("names", "stride", "output")
            if model.has_rt_info(["model_info", key])
        }
        self.signature = read_signature(path, about, _extents(model.input(0)), _extents(model.output(0)))

    def run(self, images: Float[np.ndarray, "n 3 rows columns"]) -> Tensor:
        """See `Engine`."""
        request = self.compiled.create_infer_request()
        return torch.from_numpy(np.array(request.infer(images)[0]))

    def spread(self, callers: int) -> "OpenVinoEngine":
        """See `Engine`."""
        return OpenVinoEngine(self.path, callers) if callers > 1 else self


def torch_device(name: str) -> torch.device:
    """torch's device of that name. Raises `InputError` for a name that it does not know and a device that is not
    there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r}: not known; give cpu, cuda, cuda:1 or mps") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        raise InputError(f"device {name!r}: this machine has none; use cpu")
    return device


def open_engine(weights: YOLO[Any] | str | os.PathLike[str], device: str = "cpu") -> Engine:
    """The engine for a network, a `.safetensors` of ours, an `.onnx` file, or OpenVINO's `.xml` or the folder
    around it.

    Raises `InputError` where there is no such file, its kind is unknown, or it is not a detector.
    """
    if isinstance(weights, YOLO):
        return folded_engine(weights, device, "the network")
    path = Path(weights)
    if not path.exists():
        raise InputError(f"{path}: no such file; name a .safetensors, an .onnx, or an OpenVINO .xml")
    if path.is_dir():
        inside = sorted(path.glob("*.xml"))
        if len(inside) != 1:
            raise InputError(f"{path}: {len(inside)} .xml files in this folder; an OpenVINO export has one")
        path = inside[0]
    if path.suffix == ".safetensors":
        return folded_engine(load_model(path), device, str(path))
    if path.suffix not in (".onnx", ".xml"):
        hint = "; import it first: unbranch import" if path.suffix in (".pt", ".pth") else ""
        raise InputError(
            f"{path}: weights of an unknown kind; .safetensors, .onnx and OpenVINO's .xml are read{hint}"
        )
    if torch_device(device).type != "cpu":
        raise InputError(f"{path}: exported files run on the CPU here; give .safetensors for device {device}")
    return OnnxEngine(path) if path.suffix == ".onnx" else OpenVinoEngine(path)


def folded_engine(model: YOLO[Any], device: str, where: str) -> TorchEngine:
    """An engine for `model`; one that is in training form is folded, as a copy, and the notes say so."""
    if model.deployed:
        return TorchEngine(model, device)
    folded = copy.deepcopy(model).eval().fuse()
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, folded))
    note = f"{where}: in {form_of(model)} form, folded on loading ({before:,} parameters became {after:,})"
    return TorchEngine(folded, device, (note,))


def read_signature(path: Path, about: Mapping[str, str], entry: list[Any], result: list[Any]) -> Signature:
    """The signature of an exported file, from its metadata and the extents of its input and output (numbers,
    or not).

    Files that say nothing of themselves are read as YOLOv5's or a later YOLO's by their output's shape.
    Raises `InputError` where they are neither.
    """
    if len(entry) != 4 or entry[1] != 3:
        raise InputError(f"{path}: its input is {entry}; a detector takes (pictures, 3, rows, columns)")
    names = _names(path, about.get("names"))
    output = about.get("output") or _guess_output(path, len(names), result)
    if output not in OUTPUTS:
        raise InputError(f"{path}: its metadata name the output {output!r}; known are {', '.join(OUTPUTS)}")
    if not names:
        names = tuple(f"class{i}" for i in range(result[2] - 5 if output == "predictions" else result[1] - 4))
    stride = about.get("stride", "32")
    if not stride.isdigit() or int(stride) < 1:
        raise InputError(f"{path}: its metadata have stride {stride!r}; a whole number is needed")
    fixed = isinstance(entry[2], int) and isinstance(entry[3], int)
    return Signature(
        names,
        int(stride),
        (entry[2], entry[3]) if fixed else None,
        entry[0] if isinstance(entry[0], int) else None,
        next(known for known in OUTPUTS if known == output),
    )


def _guess_output(path: Path, classes: int, result: list[Any]) -> Output:
    values = [extent if isinstance(extent, int) else None for extent in result]
    if (
        len(values) == 3
        and values[2] is not None
        and (values[2] == classes + 5 or not classes)
        and values[2] > 5
    ):
        return "predictions"
    if (
        len(values) == 3
        and values[1] is not None
        and (values[1] == classes + 4 or not classes)
        and values[1] > 4
    ):
        return "scores"
    raise InputError(
        f"{path}: its output is {result}, for {classes} names; neither (pictures, boxes, 5 + classes) nor "
        "(pictures, 4 + classes, boxes)"
    )


def _names(path: Path, text: str | None) -> tuple[str, ...]:
    """Class names out of metadata, a literal `{0: 'person', …}` or `['person', …]`; parsed, never
    evaluated.
    """
    if not text:
        return ()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise InputError(f"{path}: its metadata hold names that cannot be read: {text[:60]!r}") from error
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value, key=int)]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{path}: its metadata hold names that are no list of texts: {text[:60]!r}")
    return tuple(value)


def _onnx_runtime_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a file that it cannot run: classes of its own, with no common parent."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NotImplemented",
        "RuntimeException",
    )
    return tuple(getattr(state, name) for name in names)


def _extents(port: Any) -> list[Any]:
    return [extent.get_length() if extent.is_static else str(extent) for extent in port.get_partial_shape()]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
