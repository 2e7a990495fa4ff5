"""Inputs to run a model on: the caller's, or drawn from what the graph says of its inputs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from unbranch.frontends.onnx.errors import OnnxError
from unbranch.frontends.onnx.reading import DTYPES

Feeds: TypeAlias = dict[str, Tensor]
OnnxInputs: TypeAlias = Tensor | np.ndarray | Sequence[Any] | Mapping[str, Any] | None

BATCH, LENGTHS = (1, 3), (33, 65, 49, 64, 96, 224, 256)
"""What symbolic batches and sizes are given: odd ones first, for the borders' sake, then those that many networks ask for."""


def feeds_from(example_inputs: OnnxInputs, graph: ir.Graph) -> Feeds:
    """The caller's inputs by name.

    Raises:
        ValueError: a name that the model does not have, or too many or too few of them.
    """
    names = [str(value.name) for value in needed_inputs(graph)]
    if isinstance(example_inputs, Mapping):
        given = dict(example_inputs)
    else:
        listed = (
            [example_inputs]
            if isinstance(example_inputs, Tensor | np.ndarray)
            else list(example_inputs or ())
        )
        if len(listed) != len(names):
            raise ValueError(
                f"{len(listed)} example inputs for a model with {len(names)}: {', '.join(names)}"
            )
        given = dict(zip(names, listed, strict=True))
    if set(given) != set(names):
        raise ValueError(f"example inputs {', '.join(given)}, but the model takes {', '.join(names)}")
    return {name: torch.as_tensor(item) for name, item in given.items()}


def needed_inputs(graph: ir.Graph) -> list[ir.Value]:
    """The inputs that have no default."""
    return [value for value in graph.inputs if value.name not in graph.initializers]


def drawn_feeds(graph: ir.Graph, sizes: Sequence[Sequence[int]] | None) -> Iterator[Feeds]:
    """Random inputs at one size after another, the symbolic dimensions replaced; the same ones every time.

    Raises:
        OnnxError: an input's rank or type is not one that can be drawn.
        ValueError: a size has another number of axes than the model's input has symbolic ones.
    """
    generator = torch.Generator().manual_seed(0)
    if sizes is not None:
        for size in sizes:
            yield {str(v.name): _drawn(v, BATCH[0], list(size), generator) for v in needed_inputs(graph)}
        return
    for position, length in enumerate(LENGTHS):
        batch = BATCH[position % len(BATCH)]
        yield {str(v.name): _drawn(v, batch, length, generator) for v in needed_inputs(graph)}


def is_symbolic(graph: ir.Graph) -> bool:
    """Some input has a dimension that is no number."""
    return any(not isinstance(d, int) for v in needed_inputs(graph) for d in v.shape or ())


def _drawn(value: ir.Value, batch: int, size: int | list[int], generator: torch.Generator) -> Tensor:
    kind = None if value.dtype is None else DTYPES.get(value.dtype)
    if value.shape is None or kind is None:
        raise OnnxError(
            f"the input {value.name!r} has no shape or a type that cannot be drawn: pass example_inputs"
        )
    free = [axis for axis, d in enumerate(value.shape) if not isinstance(d, int) and axis > 0]
    if isinstance(size, list) and free and len(size) != len(free):
        raise ValueError(
            f"the size {tuple(size)} for the input {value.name!r}, which has {len(free)} symbolic sizes"
        )
    wanted = {axis: size[i] if isinstance(size, list) else size + 2 * i for i, axis in enumerate(free)}
    shape = [d if isinstance(d, int) else wanted.get(axis, batch) for axis, d in enumerate(value.shape)]
    if kind.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(kind)
    return torch.randint(0, 2, shape, generator=generator).to(kind)
