"""A network as an ONNX file: exported as it is, folded as a file, against the library's own form exported."""

import copy
import io
import time
import warnings
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils._pytree import tree_leaves

from benchmarks.zoo.networks import Made, Network, first_tensor, theirs
from benchmarks.zoo.outputs import agreeing
from unbranch import reparameterize, verify
from unbranch.fold.verify import RUN_ERRORS
from unbranch.runtimes.sessions import onnx_runtime

NOTHING = ("Identity", "Constant", "Dropout")
LAYERS = ("Conv", "ConvTranspose", "BatchNormalization")
EXPORT_ERRORS = (*RUN_ERRORS, TorchDynamoException, torch.onnx.errors.OnnxExporterError)


def exported(model: nn.Module, inputs: tuple[Any, ...], older: bool) -> onnx.ModelProto:
    """By torch's exporter, nothing folded; `older` takes the one by TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not older:
            program = torch.onnx.export(model, inputs, dynamo=True, verbose=False, optimize=False)
            if program is None:
                raise RuntimeError("the exporter returned no program")
            return program.model_proto
        buffer = io.BytesIO()
        torch.onnx.export(
            model,
            inputs,
            buffer,  # pyright: ignore[reportArgumentType]
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            opset_version=18,
        )
    return onnx.load_from_string(buffer.getvalue())


def nodes_that_run(model: onnx.ModelProto, outputs: Collection[str] | None = None) -> list[str]:
    """The op of every node that depends on an input and that an output needs, or one of ``outputs``."""
    live = {value.name for value in model.graph.input} - {value.name for value in model.graph.initializer}
    running = []
    for node in model.graph.node:
        if node.op_type == "Constant" or not any(name in live for name in node.input):
            continue
        live |= set(node.output)
        running.append(node)
    needed = {value.name for value in model.graph.output} if outputs is None else set(outputs)
    kept = []
    for node in reversed(running):
        if needed & set(node.output):
            needed |= set(node.input)
            if node.op_type not in NOTHING:
                kept.append(node.op_type)
    return kept


def in_common(
    ours: onnx.ModelProto, theirs: onnx.ModelProto, inputs: tuple[Any, ...]
) -> tuple[list[str], list[str]]:
    """The names of the outputs that both files give, in each: fusing drops heads that only training reads."""
    found, others = _outputs(ours, inputs), _outputs(theirs, inputs)
    pairs: dict[str, str] = {}
    for name, value in found.items():
        same = (
            other for other in agreeing(dict.fromkeys(others, value), others) if other not in pairs.values()
        )
        for other in sorted(same)[:1]:
            pairs[name] = other
    return list(pairs), list(pairs.values())


def _outputs(model: onnx.ModelProto, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    given = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, str(path))
        values: Any = onnx_runtime(path, given, 1)()
    return {output.name: torch.as_tensor(v) for output, v in zip(model.graph.output, values, strict=True)}


def layers_in(kinds: list[str]) -> int:
    """Convolutions and norms."""
    return sum(kind in LAYERS for kind in kinds)


def fold_file(network: Network, made: Made) -> dict[str, Any]:
    """The row's part; "not exported" where neither exporter takes the network."""
    from benchmarks.zoo.rows import first_line, summary

    row: dict[str, Any]
    model, row, reasons = None, {}, []
    for older in (False, True):
        try:
            model = exported(made.model, made.inputs, older)
        except EXPORT_ERRORS as error:
            reasons.append(first_line(error))
            continue
        row["exporter"] = "TorchScript" if older else "torch.export"
        break
    if model is None:
        return {"outcome": "not exported", "why": " / ".join(dict.fromkeys(reasons))}
    start = time.process_time()
    folded, report = reparameterize(model, return_report=True)
    row |= summary(report) | {"fold_seconds": {"ours": time.process_time() - start}}
    kinds = {"before": nodes_that_run(model), "after": nodes_that_run(folded)}
    example = first_tensor(made.inputs)
    certificate = verify(model, folded, example if example.dim() == 4 else None)
    row["error32"] = certificate.error
    row["rounding32"] = max((c.tolerance for c in certificate.checks), default=0.0) / 4
    row["equal"] = bool(certificate)
    row["notes"] += [note for note in certificate.notes if "no second size" not in note]
    row["failed"] = [str(c.output) for c in certificate.checks if not c.passed][:5]
    fused = theirs(network, copy.deepcopy(made.model))
    if fused is not None:
        try:
            other = exported(fused, made.inputs, row["exporter"] == "TorchScript")
            kinds["theirs"] = nodes_that_run(other)
        except EXPORT_ERRORS as error:
            row["theirs"] = f"does not export once it is fused: {first_line(error)}"
        else:
            if len(other.graph.output) != len(folded.graph.output):
                own, its = in_common(folded, other, made.inputs)
                kinds = {"before": nodes_that_run(model, own), "after": nodes_that_run(folded, own)}
                kinds["theirs"] = nodes_that_run(other, its)
                row["outputs compared"] = f"{len(own)} of {len(folded.graph.output)}"
    row["ops"] = {name: len(some) for name, some in kinds.items()}
    row["layers"] = {name: layers_in(some) for name, some in kinds.items()}
    return row
