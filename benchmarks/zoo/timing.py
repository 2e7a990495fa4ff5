"""Times of one network: as it was, folded, and fused by its own library, in turn in one run."""

import copy
import ctypes
import platform
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from benchmarks.zoo.networks import Made, Network, make, shape_of, theirs
from benchmarks.zoo.onnx_rows import EXPORT_ERRORS, exported, nodes_that_run
from unbranch import reparameterize
from unbranch.fold.verify import RUN_ERRORS
from unbranch.runtimes.sessions import onnx_runtime, openvino
from unbranch.runtimes.timing import Run, time_pair

SIDES = {"ultralytics": 320}
PAIRS, SECONDS = 40, 4.0
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
RUNTIMES = {"onnxruntime": onnx_runtime, "openvino": openvino}


def keep_memory() -> None:
    """What a run frees stays with the process (glibc): else the page faults of one form's buffers, and not its work, are timed."""
    libc = ctypes.CDLL(None)
    if platform.libc_ver()[0] == "glibc":
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_MMAP_MAX, 0)


def ratio(before: Run, after: Run) -> dict[str, Any]:
    """`before` over `after`, with its 95 % interval, and both medians in milliseconds."""
    found = time_pair(before, after, pairs=PAIRS, seconds=SECONDS)
    keys = ("before", "after", "ratio", "low", "high", "pairs")
    return {key: found.to_dict()[key] for key in keys}


def time_row(network: Network) -> dict[str, Any]:
    """Torch eager for every network; ONNX Runtime where the number of convolutions changed, which it cannot do by itself."""
    made = make(network, SIDES.get(network.library, 224))
    folded = reparameterize(made.model, made.inputs)
    fused = theirs(network, copy.deepcopy(made.model))
    row: dict[str, Any] = {"outcome": "timed", "input": shape_of(made.inputs), "torch": {}}
    mine = _eager(folded, made)
    row["torch"]["unfolded"] = ratio(_eager(made.model, made), mine)
    if fused is not None and _runs(fused, made):
        try:
            bare = reparameterize(made.model, made.inputs, unwrap=True)
        except ValueError as error:  # the network asks its containers what they are
            bare, row["containers kept"] = folded, str(error).splitlines()[0][:200]
        row["torch"]["theirs"] = ratio(_eager(fused, made), _eager(bare, made))
    if isinstance(made.inputs[0], Tensor) and _convolutions(folded, made) != _convolutions(made.model, made):
        try:
            row["onnxruntime"] = _in_onnx_runtime(made, fused)
        except EXPORT_ERRORS as error:
            row["not in ONNX Runtime"] = str(error).splitlines()[0][:200]
    return row


def _eager(model: nn.Module, made: Made) -> Run:
    def run() -> object:
        with torch.inference_mode():
            return model(*made.inputs)

    return run


def _runs(model: nn.Module, made: Made) -> bool:
    try:
        _eager(model, made)()
    except RUN_ERRORS:
        return False
    return True


def _convolutions(model: nn.Module, made: Made) -> int:
    """That a run calls."""
    calls: list[nn.Module] = []
    kinds = nn.modules.conv._ConvNd
    handles = [
        module.register_forward_hook(lambda m, args, output: calls.append(m))
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    _eager(model, made)()
    for handle in handles:
        handle.remove()
    return len(calls)


def _in_onnx_runtime(made: Made, fused: nn.Module | None) -> dict[str, Any]:
    model = exported(made.model, made.inputs, older=False)
    forms = {"ours": reparameterize(model), "unfolded": model}
    if fused is not None:
        forms["theirs"] = exported(fused, made.inputs, older=False)
    return against_ours(forms, made.inputs, ("onnxruntime",))["onnxruntime"]


def against_ours(
    forms: dict[str, onnx.ModelProto], inputs: tuple[Any, ...], runtimes: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Every other form of a file over ours, by runtime and form."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in forms.items():
            onnx.save(model, str(Path(folder) / f"{name}.onnx"))
        for runtime in runtimes:
            runs = {name: RUNTIMES[runtime](Path(folder) / f"{name}.onnx", inputs, 1) for name in forms}
            ours = runs.pop("ours")
            found[runtime] = {name: ratio(run, ours) for name, run in runs.items()}
    return found


def file_row(network: Network) -> dict[str, Any]:
    """The un-folded file at 224 px, and what makes of it: ours, timm's own form exported, onnxsim, onnxslim, ONNX Runtime."""
    made = make(network, 224)
    forms = file_forms(network, made)
    return {
        "outcome": "timed",
        "input": shape_of(made.inputs),
        **counts_of(forms),
        "ratios": against_ours(forms, made.inputs, ("onnxruntime", "openvino")),
    }


def file_forms(network: Network, made: Made) -> dict[str, onnx.ModelProto]:
    """The file by who worked on it."""
    import onnxsim
    import onnxslim

    model = default_export(made.model, made.inputs)
    fused = theirs(network, copy.deepcopy(made.model))
    forms = {"ours": reparameterize(model), "unfolded": model}
    if fused is not None:
        forms["timm"] = default_export(fused, made.inputs)
    forms["onnxsim"] = onnxsim.simplify(model)[0]
    slimmed: Any = onnxslim.slim(copy.deepcopy(model))
    forms["onnxslim"] = slimmed
    return forms


def counts_of(forms: dict[str, onnx.ModelProto]) -> dict[str, dict[str, int]]:
    """Ops and convolutions of each form, and of what ONNX Runtime's optimizer makes of the un-folded file and of ours."""
    more = {"onnxruntime": optimized(forms["unfolded"]), "both": optimized(forms["ours"])}
    counts = {name: nodes_that_run(form) for name, form in (forms | more).items()}
    return {
        "ops": {name: len(kinds) for name, kinds in counts.items()},
        "convolutions": {name: sum("Conv" in kind for kind in kinds) for name, kinds in counts.items()},
    }


def default_export(model: nn.Module, inputs: tuple[Any, ...]) -> onnx.ModelProto:
    """As torch.onnx.export writes it when nobody asks for anything: its own optimizer has run."""
    program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    if program is None:
        raise RuntimeError("the exporter returned no program")
    return program.model_proto


def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """What ONNX Runtime's own graph optimizer leaves, layouts and fused activations aside."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "optimized.onnx"
        onnx.save(model, str(source))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(target)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        return onnx.load(str(target))
