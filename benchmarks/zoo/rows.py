"""One row: one network through one front end, with its errors, its ops, its times and what was refused."""

import copy
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from benchmarks.zoo import counting, onnx_rows, timing
from benchmarks.zoo.networks import Made, Network, make, mapped, shape_of, theirs
from benchmarks.zoo.outputs import agreeing, outputs_of
from unbranch import reparameterize
from unbranch.fold.certificate import fold_error
from unbranch.fold.report import Report
from unbranch.fold.verify import RUN_ERRORS
from unbranch.frontends.modules import record

Outputs = Mapping[str, Tensor]


FREE_SECONDS = 60
"""What torch gets to export a network with sizes that may change: some take its solver minutes."""


class ExportError(RuntimeError):
    """The network does not export; the message says why."""


def fold_row(network: Network, front: str) -> dict[str, Any]:
    """The row, for machines."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if front in ("time", "file"):
        timing.keep_memory()
        return timing.time_row(network) if front == "time" else timing.file_row(network)
    made = make(network)
    row: dict[str, Any] = {"input": shape_of(made.inputs)}
    try:
        if front == "onnx":
            row |= onnx_rows.fold_file(network, made)
        else:
            row |= _module(network, made) if front == "module" else _exported(network, made)
    except ExportError as error:
        return row | {"outcome": "not exported", "why": str(error)}
    return row


def summary(report: Report) -> dict[str, Any]:
    """Places, reasons and notes."""
    reasons = Counter(refused.reason for refused in report.refused)
    return {
        "outcome": "folded" if report.changed else "unchanged",
        "places": len(report.folded),
        "multiply_adds": [report.before.multiply_adds, report.after.multiply_adds],
        "refusals": dict(reasons.most_common()),
        "notes": list(report.notes),
    }


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Of one call, in this process's own time, and its result: others may use the machine meanwhile."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _module(network: Network, made: Made) -> dict[str, Any]:
    record(copy.deepcopy(made.model), made.inputs)  # the first call of a process warms it up
    recording, _ = cpu_seconds(lambda: record(copy.deepcopy(made.model), made.inputs))
    whole, (folded, report) = cpu_seconds(lambda: reparameterize(made.model, made.inputs, return_report=True))
    row = summary(report)
    other = copy.deepcopy(made.model)
    fusing, fused = cpu_seconds(lambda: theirs(network, other))
    row["fold_seconds"] = {"ours": whole - recording, "with recording": whole}
    if fused is not None:
        row["fold_seconds"]["theirs"] = fusing
    row |= _counts(made, made.model, folded, fused)
    row |= _errors(made, reparameterize, folded)
    again = reparameterize(folded, made.inputs, return_report=True)[1]
    if again.changed:
        row["notes"].append(f"a second fold changes it again: {again.verdict}")
    return row


def _exported(network: Network, made: Made) -> dict[str, Any]:
    program = _program(made.model, made.inputs)
    whole, (folded, report) = cpu_seconds(lambda: reparameterize(program, return_report=True))
    row = summary(report) | {"fold_seconds": {"ours": whole}}
    row["dynamic sizes"] = any(isinstance(d, torch.SymInt) for d in _first_shape(program))
    fused = _exported_if_it_can(theirs(network, copy.deepcopy(made.model)), made.inputs)
    plain = made if not made.watched else Made(made.model, made.inputs, made.others)
    row |= _counts(plain, program.module(), folded.module(), fused)
    row |= _errors(
        plain, lambda model, inputs: reparameterize(_program(model, inputs)).module(), folded.module()
    )
    return row


def _exported_if_it_can(model: nn.Module | None, inputs: tuple[Any, ...]) -> nn.Module | None:
    """What an export keeps of it: a run of the module itself may find there what an earlier one left."""
    try:
        return model if model is None else _program(model, inputs).module()
    except ExportError:
        return model


def _first_shape(program: Any) -> Any:
    return next(
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    )


def _program(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Exported with sizes that may change, if it then takes the inputs, or else with fixed ones."""
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    why = ""
    for shapes in ((free,), None):
        if shapes and not isinstance(inputs[0], Tensor):
            continue
        given = inputs
        if shapes:  # a batch of one would be taken for a constant
            given = mapped(inputs, lambda x: torch.cat([x, x]))
        try:
            with _at_most(FREE_SECONDS if shapes else 0):
                program = torch.export.export(model, given, dynamic_shapes=shapes)
            program.module()(*inputs)  # some sizes that were called free turn out to exclude the inputs' own
            return program
        except (*RUN_ERRORS, TorchDynamoException) as error:
            why = first_line(error)
    raise ExportError(why)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """CPU seconds, 0 for any; then a RuntimeError."""

    def late(*_: Any) -> None:
        raise RuntimeError(f"not done in {seconds:.0f} s")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def first_line(error: BaseException) -> str:
    """Of an exception's text, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def _counts(made: Made, before: nn.Module, after: nn.Module, fused: nn.Module | None) -> dict[str, Any]:
    """Ops and layers that the same outputs need: of those that our network and the library's give."""
    ours, ours_out = counting.counted(lambda: outputs_of(after, made.inputs, ()))
    keys = set(ours_out)
    ops, layers, notes = {}, {}, {}
    if fused is not None:
        try:
            fuse, fuse_out = counting.counted(lambda: outputs_of(fused, made.inputs, ()))
        except RUN_ERRORS as error:
            fused, notes["theirs"] = None, f"does not run once it is fused: {first_line(error)}"
        else:
            keys = agreeing(ours_out, fuse_out)
            found = fuse.needed([fuse_out[key] for key in keys])
            ops["theirs"], layers["theirs"] = len(found), counting.layers(found)
            errors = [fold_error(fuse_out[key], ours_out[key]) for key in keys]
            notes["theirs differ"] = max(errors, default=float("inf"))
    start, start_out = counting.counted(lambda: outputs_of(before, made.inputs, ()))
    for name, counter, out in (("before", start, start_out), ("after", ours, ours_out)):
        found = counter.needed([out[key] for key in keys & set(out)])
        ops[name], layers[name] = len(found), counting.layers(found)
    if len(keys) < len(ours_out):
        notes["outputs compared"] = f"{len(keys)} of {len(ours_out)}"
    return {"ops": ops, "layers": layers} | notes


def _errors(made: Made, fold: Callable[..., Any], folded: Any) -> dict[str, Any]:
    """The largest errors in float64 and float32, each with what rounding alone does to the network as it was."""
    row: dict[str, Any] = {"sizes": [shape_of(made.inputs)]}
    # A watched run holds all that it computes: in the working type that is half as much.
    counter, before = counting.counted(lambda: outputs_of(made.model, made.inputs, made.watched))
    searched = {key for key, value in before.items() if counting.is_searched(counter, value)}
    del counter
    wide, wide_inputs = copy.deepcopy(made.model).double(), _double(made.inputs)
    exact: Outputs | None = None
    try:
        exact = outputs_of(wide, wide_inputs, made.watched)
        wide_folded = fold(wide, wide_inputs)
        found = outputs_of(wide_folded, wide_inputs, made.watched)
        nudged = mapped(wide_inputs, lambda x: x * (1 + torch.finfo(torch.float64).eps))
        row["error64"] = _worst(found, exact)
        row["rounding64"] = _worst(outputs_of(wide, nudged, made.watched), exact)
        if made.others is not None:
            other = _double(made.others)
            try:
                found = outputs_of(wide_folded, other, made.watched)
            except RUN_ERRORS as error:
                row["other size"] = f"not taken: {first_line(error)}"
            else:
                row["error64"] = max(row["error64"], _worst(found, outputs_of(wide, other, made.watched)))
                row["sizes"].append(shape_of(other))
    except RUN_ERRORS as error:
        row["not in float64"] = first_line(error)
    del wide
    after = outputs_of(folded, made.inputs, made.watched)
    row["error32"] = _worst(after, before, searched)
    if exact is not None:
        row["rounding32"] = _worst(before, exact, searched)
    if searched:
        row["searched"] = sorted(searched)
    return row


def _double(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return mapped(inputs, lambda x: x.double())


def _worst(found: Outputs, expected: Outputs, leaving: Collection[str] = ()) -> float:
    """The largest error; infinite where an output is missing."""
    keys = [key for key in expected if key not in leaving]
    if set(found) - set(leaving) != set(keys):
        return float("inf")
    return max((fold_error(found[key], expected[key]) for key in keys), default=0.0)
