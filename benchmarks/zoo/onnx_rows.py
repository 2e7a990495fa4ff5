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
from unbranch.fold.certificate import fold_error
from unbranch.fold.verify import RUN_ERRORS
from unbranch.runtimes.sessions import onnx_runtime

NOTHING = ("Identity", "Constant", "Dropout")
LAYERS = ("Conv", "ConvTranspose", "BatchNormalization")
SEARCHES = (
    "TopK",
    "NonMaxSuppression",
    "ArgMax",
    "ArgMin",
    "NonZero",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
)
LIMIT = 1e-5
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


def behind_a_search(model: onnx.ModelProto) -> tuple[set[str], list[str]]:
    """The outputs that a search or a comparison orders, and the numbers that go into the ops from there on.

    Rounding that swaps two near values there makes such an output jump; all that folding can change is in the numbers before.
    """
    known = onnx.shape_inference.infer_shapes(model).graph
    floats = {v.name for v in known.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    live = {value.name for value in model.graph.input}
    late: set[str] = set()
    before: dict[str, None] = {}
    for node in model.graph.node:
        depends = [name for name in node.input if name in live]
        if not depends:
            continue
        live |= set(node.output)
        compares = node.op_type in SEARCHES and bool(floats.intersection(depends))
        if compares or late.intersection(depends):
            late |= set(node.output)
            before |= dict.fromkeys(n for n in depends if n in floats and n not in late)
    return late & {value.name for value in model.graph.output}, list(before)


def _equality(model: onnx.ModelProto, folded: onnx.ModelProto, made: Made) -> dict[str, Any]:
    """The certificate, at two sizes where the network takes two; behind a search that jumps, the numbers that go into it."""
    example = first_tensor(made.inputs)
    certificate = verify(model, folded, example if example.dim() == 4 else None)
    row: dict[str, Any] = {
        "error32": certificate.error,
        "rounding32": max((c.tolerance for c in certificate.checks), default=0.0) / 4,
        "notes": [note for note in certificate.notes if "no second size" not in note],
        "failed": [str(c.output) for c in certificate.checks if not c.passed][:5],
    }
    searched, before = behind_a_search(model)
    if searched and not certificate.error <= LIMIT:
        row |= {"searched": sorted(searched), **_before_the_search(model, searched, before, made.inputs)}
    return {**row, "equal": not row["failed"]}


def _before_the_search(
    model: onnx.ModelProto, searched: set[str], before: list[str], inputs: tuple[Any, ...]
) -> dict[str, Any]:
    """The row's error where a search orders outputs: of the others, and of the numbers that go into the search."""
    watched = copy.deepcopy(model)
    del watched.graph.output[:]
    kept = [value for value in model.graph.output if value.name not in searched]
    names = [name for name in before if name not in {value.name for value in kept}]
    shapeless = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names]
    watched.graph.output.extend([*kept, *shapeless])
    expected, found = _outputs(watched, inputs), _outputs(reparameterize(watched), inputs)
    errors = {name: fold_error(found[name], value) for name, value in expected.items()}
    failed = [name for name, error in errors.items() if not error <= LIMIT]
    return {"error32": max(errors.values()), "failed": failed[:5], "watched": len(errors)}


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
    equal = _equality(model, folded, made)
    row["notes"] += equal.pop("notes")
    row |= equal
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
