"""A module as an ONNX file, run in ONNX Runtime against torch before it gets its name."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unbranch.deploy.said import first_line
from unbranch.detect.errors import InputError
from unbranch.detect.files import replacing
from unbranch.fold.certificate import Certificate, Check, fold_error, tensors_in
from unbranch.fold.precision import full_precision
from unbranch.fold.verify import RUN_ERRORS
from unbranch.runtimes.sessions import open_session

TOLERANCE = 1e-4
"""Another runtime's kernels add up in another order: more room than between two runs of torch."""


def export_onnx(
    model: nn.Module, inputs: Sequence[Tensor], target: Path, *, free_batch: bool = True
) -> Certificate:
    """Write `target`, the first axis of every input free with `free_batch`, and certify what was written.

    The file is run in ONNX Runtime on `inputs`, and with a free batch on three samples too; it takes its name
    only where ``max|a - b| / max(1, max|b|)`` of every output is at most 1e-4. A network whose batch cannot
    be free is written with the batch of `inputs`, and the certificate notes it.

    Raises `InputError` where the export fails, the file does not agree, or the place cannot be written.
    """
    notes: list[str] = []
    with replacing(target) as part:
        try:
            sizes = _write(model, inputs, part, free_batch)
        except RUN_ERRORS as error:
            if not free_batch:
                raise InputError(f"{target}: the export to ONNX failed: {first_line(error)}") from error
            notes.append(f"the batch is fixed at {inputs[0].shape[0]}: {first_line(error)}")
            return _fixed(model, inputs, part, target, notes)
        return _certified(model, [_batch(inputs, n) for n in sizes], part, target, notes)


def _fixed(
    model: nn.Module, inputs: Sequence[Tensor], part: Path, target: Path, notes: list[str]
) -> Certificate:
    try:
        _write(model, inputs, part, False)
    except RUN_ERRORS as error:
        raise InputError(f"{target}: the export to ONNX failed: {first_line(error)}") from error
    return _certified(model, [tuple(inputs)], part, target, notes)


def _certified(
    model: nn.Module, runs: Sequence[Sequence[Tensor]], part: Path, target: Path, notes: list[str]
) -> Certificate:
    certificate = Certificate(tuple(c for run in runs for c in _checks(model, run, part)), tuple(notes))
    if not certificate:
        raise InputError(
            f"{target}: ONNX Runtime and torch differ by {certificate.error:.1e} on the exported file, more than "
            f"{TOLERANCE:.0e}: it was not kept"
        )
    return certificate


def _write(model: nn.Module, inputs: Sequence[Tensor], part: Path, free_batch: bool) -> list[int]:
    """Export and say which batches the file takes."""
    own = inputs[0].shape[0] if inputs[0].ndim else 1
    # A batch of one would be taken for a constant by the exporter, so it is shown two.
    shown = _batch(inputs, max(own, 2)) if free_batch else tuple(inputs)
    free = {0: torch.export.Dim.DYNAMIC}
    names = ["input"] if len(inputs) == 1 else [f"input{i}" for i in range(len(inputs))]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's talk of its own future
        program = torch.onnx.export(
            model,
            shown,
            dynamo=True,
            verbose=False,
            input_names=names,
            dynamic_shapes=tuple(free if t.ndim else {} for t in inputs) if free_batch else None,
        )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    program.save(part, external_data=False)
    return [own, 3] if free_batch else [own]


def _batch(inputs: Sequence[Tensor], count: int) -> tuple[Tensor, ...]:
    """The inputs with `count` samples, the ones there are over again."""
    return tuple(
        t.index_select(0, torch.arange(count, device=t.device) % t.shape[0]) if t.ndim else t for t in inputs
    )


def _checks(model: nn.Module, inputs: Sequence[Tensor], path: Path) -> list[Check]:
    with torch.no_grad(), full_precision():
        expected = list(tensors_in(model(*inputs)))
    found = open_session(path).run(None, _feed(path, inputs))
    size = ", ".join("x".join(map(str, t.shape)) for t in inputs)
    if len(found) != len(expected):
        return [Check(f"{len(found)} outputs", (), "onnx", size, float("inf"), TOLERANCE)]
    return [
        Check(
            name,
            tuple(tensor.shape),
            f"{str(tensor.dtype).removeprefix('torch.')} (ONNX)",
            size,
            fold_error(torch.from_numpy(np.asarray(values)), tensor),
            TOLERANCE,
        )
        for (name, tensor), values in zip(expected, found, strict=True)
    ]


def _feed(path: Path, inputs: Sequence[Tensor]) -> dict[str, np.ndarray]:
    names = [entry.name for entry in open_session(path).get_inputs()]
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, inputs, strict=True)}
