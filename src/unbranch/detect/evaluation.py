"""Measure a detector on a data set: its own weights, an exported file, a module, or any function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbranch.detect.data.batches import EvaluationSet
from unbranch.detect.data.check import Split, check_split
from unbranch.detect.data.pictures import Kind
from unbranch.detect.data.spec import open_spec
from unbranch.detect.engines import Engine, open_engine, torch_device
from unbranch.detect.errors import InputError
from unbranch.detect.metrics import Metrics, evaluate
from unbranch.detect.nms import Limits
from unbranch.detect.validation import MEASURING, Predictor, detect_all, in_order

Weights = str | Path | nn.Module | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Validation:
    """The measures of a split, what was checked of it, and the milliseconds a picture for each part of the
    work."""

    metrics: Metrics
    split: Split
    milliseconds: dict[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Runner:
    """A predictor with what its file fixes: class names, input size (rows, columns), pictures in a batch."""

    predict: Predictor
    names: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    batch: int | None = None
    notes: tuple[str, ...] = ()
    stride: int = 32


def validate(
    weights: Weights,
    data: str | Path | Mapping[str, Any] | Split,
    split: str = "val",
    size: int = 640,
    batch: int = 16,
    limits: Limits = MEASURING,
    device: str = "cpu",
    cache: Kind = "none",
) -> Validation:
    """mAP50, mAP50-95 and more of `weights` on one split, by the COCO evaluator, in original pixels.

    weights: a `.safetensors` of ours, an exported `.onnx` or OpenVINO file, a module, or a function from
    images (n, 3, h, w) in 0..1 to predictions (n, boxes, 5 + classes). A file with a fixed input is fed at
    that size, square; others rectangularly. data: what `train` takes, or a checked `Split`, whose size then
    counts.

    Raises InputError where the classes of weights and data differ, or either cannot be read.

    Example:
        >>> validate("best.safetensors", "cells.yaml", split="test", size=320).metrics.map50  # doctest: +SKIP
        0.87
    """
    runner = open_runner(weights, device)
    fixed = runner.size
    if fixed is not None and fixed[0] != fixed[1]:
        raise InputError(
            f"{weights}: its input is {fixed[1]}x{fixed[0]}; measuring needs a square or a dynamic one"
        )
    checked = (
        data if isinstance(data, Split) else _read(data, split, size if fixed is None else fixed[0], cache)
    )
    if fixed is not None and fixed[0] != checked.size:
        raise InputError(
            f"{weights}: its input is {fixed[0]} pixels, the pictures are held at {checked.size}"
        )
    if batch < 1:
        raise InputError(f"batch {batch}: at least one picture")
    if checked.size % runner.stride:
        nearest = max(round(checked.size / runner.stride), 1) * runner.stride
        raise InputError(
            f"size {checked.size}: the network needs a multiple of {runner.stride}, such as {nearest}"
        )
    if runner.names is not None and len(runner.names) != len(checked.names):
        raise InputError(
            f"the weights have {len(runner.names)} classes, the data {len(checked.names)}; use its own data"
        )
    batches = EvaluationSet(checked, runner.batch or batch, runner.stride, rectangular=fixed is None)
    found, milliseconds = detect_all(
        runner.predict, (batches[i] for i in range(len(batches))), limits, device
    )
    return Validation(evaluate(in_order(found, len(checked)), checked), checked, milliseconds, runner.notes)


def _read(data: str | Path | Mapping[str, Any], split: str, size: int, cache: Kind) -> Split:
    return check_split(open_spec(data), split, size, cache)


def open_runner(weights: Weights, device: str) -> Runner:
    """The predictor of anything that can be measured."""
    if isinstance(weights, str | Path):
        engine = open_engine(str(weights), device)
        signature = engine.signature
        if signature.output != "predictions":
            raise InputError(
                f"{weights}: its output is '{signature.output}'; measuring needs raw predictions"
            )
        return Runner(
            _of_engine(engine),
            signature.names,
            signature.size,
            signature.batch,
            engine.notes,
            signature.stride,
        )
    if isinstance(weights, nn.Module):
        moved = weights.to(torch_device(device)).eval()
        return Runner(moved)
    return Runner(weights)


def _of_engine(engine: Engine) -> Predictor:
    """The engine as a function of tensors. A file of fixed batch gets its last pictures padded to it."""
    fixed = engine.signature.batch

    def predict(images: Tensor) -> Tensor:
        array = np.ascontiguousarray(images.cpu().numpy())
        missing = 0 if fixed is None else fixed - len(array)
        if missing > 0:
            array = np.concatenate((array, np.zeros((missing, *array.shape[1:]), array.dtype)))
        return torch.as_tensor(engine.run(array))[: len(images)]

    return predict
