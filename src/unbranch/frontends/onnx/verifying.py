"""Prove the fold of a model: both run on the same inputs, at a second size too where sizes are symbolic."""

from collections.abc import Iterable, Sequence

import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from unbranch.fold.certificate import TOLERANCES, Certificate, Check, fold_error, tensors_in
from unbranch.fold.report import Report
from unbranch.fold.verify import ROUNDING, compare
from unbranch.frontends.onnx.errors import OnnxError, first_line
from unbranch.frontends.onnx.files import from_any
from unbranch.frontends.onnx.inputs import (
    Feeds,
    OnnxInputs,
    drawn_feeds,
    feeds_from,
    is_symbolic,
    needed_inputs,
)
from unbranch.frontends.onnx.running import RUN_ERRORS, Runner, in_float32, stored_type


def verify_onnx(
    before: onnx.ModelProto | ir.Model,
    after: onnx.ModelProto | ir.Model,
    example_inputs: OnnxInputs = None,
    *,
    sizes: Sequence[Sequence[int]] | None = None,
    report: Report | None = None,
) -> Certificate:
    """Run both in ONNX Runtime and certify ``max|a - b| / max(1, max|b|)`` of every output: 1e-5 in float32, 1e-10 in float64.

    A float64 model runs in ONNX's reference implementation, a bfloat16 one with its weights widened to float32.

    Args:
        before: The model as it was.
        after: The folded one.
        example_inputs: A tensor, a sequence in the order of the model's inputs, or a mapping by name; None draws them.
        sizes: The sizes to give the symbolic dimensions after the first, such as ``[(96, 160)]``; by default two that the model takes.
        report: The fold's report: the certificate then names the folded place whose value differs most.

    Raises:
        OnnxError: ``before`` does not run, or inputs cannot be drawn for it.
        ValueError: the example inputs or sizes do not fit the model's inputs.

    Example:
        >>> text = "<ir_version: 8, opset_import: ['' : 13]> g (float[1,4,9,9] x) => (float[1,4,9,9] y) {y = Neg(x)}"
        >>> model = onnx.parser.parse_model(text)
        >>> bool(verify_onnx(model, model))
        True
    """
    first, second = from_any(before), from_any(after)
    for name, model in (("before", first), ("after", second)):
        if not needed_inputs(model.graph):
            raise OnnxError(f"the model {name} folding has no inputs: there is nothing to verify")
    stored = stored_type(first)
    wide = stored is not None
    if wide:
        first, second = in_float32(first), in_float32(second)
    feeds, notes = _feeds(first, example_inputs, sizes, wide)
    runner, plain = _runner(first), Runner(first, optimized=False)
    checks: list[Check] = []
    exact = [_outputs(plain, some) for some in feeds]
    try:
        other = Runner(second)
        for some, outputs in zip(feeds, exact, strict=True):
            checks += compare(runner, other, (), some, stored, outputs)
    except RUN_ERRORS as error:
        checks.append(Check(f"raised: {first_line(error)}", (), "none", "", float("inf"), 0.0))
        return Certificate(tuple(checks), tuple(notes))
    limit = TOLERANCES[stored or torch.float32]
    raised = [check for check in checks if check.tolerance > limit]
    if raised:
        notes.append(
            f"rounding alone moves {len(raised)} of the outputs of the model as it was by more than the limit, with the runtime's "
            f"optimizations and without: there the limit is {ROUNDING:.0f} times that"
        )
    worst = None
    if report is not None:
        try:
            worst = _worst_place(first, second, feeds[0], report)
        except RUN_ERRORS as error:
            notes.append(f"the values at the folded places could not be compared: {first_line(error)}")
    return Certificate(tuple(checks), tuple(notes), worst)


def _runner(model: ir.Model) -> Runner:
    try:
        return Runner(model)
    except RUN_ERRORS as error:
        raise OnnxError(
            f"the model before folding does not load in ONNX Runtime: {first_line(error)}"
        ) from error


def _outputs(runner: Runner, feeds: Feeds) -> dict[str, Tensor]:
    """What the model as it was computes, tensor by tensor."""
    try:
        return dict(tensors_in(runner(**feeds)))
    except RUN_ERRORS as error:
        raise OnnxError(
            f"the model before folding does not run at {_sizes(feeds)}: {first_line(error)}"
        ) from error


def _feeds(
    model: ir.Model, example_inputs: OnnxInputs, sizes: Sequence[Sequence[int]] | None, wide: bool
) -> tuple[list[Feeds], list[str]]:
    """What to run: the caller's inputs, the caller's sizes, or the first two sizes that the model takes."""
    notes = []
    given: list[Feeds] = []
    if example_inputs is not None:
        given.append(_widened(feeds_from(example_inputs, model.graph), wide))
    symbolic = is_symbolic(model.graph)
    if sizes is None and (given and not symbolic):
        return given, ["no second size: the model's sizes are fixed"]
    runner, reason = _runner(model), ""
    for feeds in drawn_feeds(model.graph, sizes):
        candidate = _widened(feeds, wide)
        try:
            runner(**candidate)
        except RUN_ERRORS as error:
            reason = first_line(error)
            if sizes is not None:
                raise OnnxError(
                    f"the model before folding does not run at {_sizes(candidate)}: {reason}"
                ) from error
            continue
        given.append(candidate)
        if sizes is None and len(given) >= (2 if symbolic else 1):
            break
    if not given:
        raise OnnxError(
            f"the model before folding does not run on drawn inputs ({reason}): pass example_inputs"
        )
    if sizes is None and len(given) == 1:
        notes.append(f"no second size: {'the model takes no other' if symbolic else 'its sizes are fixed'}")
    return given, notes


def _widened(feeds: Feeds, wide: bool) -> Feeds:
    return {name: t.float() if wide and t.is_floating_point() else t for name, t in feeds.items()}


def _sizes(feeds: Feeds) -> str:
    return ", ".join("x".join(map(str, tensor.shape)) for tensor in feeds.values())


def _worst_place(before: ir.Model, after: ir.Model, feeds: Feeds, report: Report) -> str | None:
    """The folded place whose value differs most; it has the same name in both models."""
    places = {f.output: f.place for f in report.folded if f.output}
    first, second = (_values(model, places, feeds) for model in (before, after))
    errors = {
        places[name]: fold_error(second[name], first[name])
        for name in places
        if name in first and name in second
    }
    if not errors:
        return None
    worst = max(errors, key=lambda place: errors[place])
    return f"{worst} ({errors[worst]:.1e})"


def _values(model: ir.Model, names: Iterable[str], feeds: Feeds) -> dict[str, Tensor]:
    """Some of a model's inner values in one run."""
    copy, wanted = model.clone(), set(names)
    kind = next(
        (v.type for v in copy.graph.inputs if v.dtype is not None and v.dtype.is_floating_point()), None
    )
    found = [v for node in copy.graph for v in node.outputs if v.name in wanted and not v.is_graph_output()]
    for value in found:
        value.type = value.type or kind
    copy.graph.outputs.extend(found)
    results = Runner(copy, optimized=False)(**feeds)
    return {name: result for name, result in results.items() if name in wanted and isinstance(result, Tensor)}
