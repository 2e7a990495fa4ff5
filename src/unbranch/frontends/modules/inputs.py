"""Example inputs: the user's, or a guess from what the model says of itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

ExampleInputs: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any] | None

_SIZES = {1: (256,), 2: (224, 224), 3: (16, 64, 64)}


def arguments(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a tensor is one argument, a sequence several, a mapping is by name."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return tuple(example_inputs or ()), {}


def one_sample(example_inputs: ExampleInputs) -> ExampleInputs:
    """The inputs; where all of them are empty batches, batches of one zero sample, from which the work can be told.

    Raises:
        ValueError: a sample itself is empty.
    """
    args, kwargs = arguments(example_inputs)
    given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    if not given or any(x.numel() for x in given):
        return example_inputs
    empty = [tuple(x.shape) for x in given if x.ndim == 0 or 0 in x.shape[1:]]
    if empty:
        raise ValueError(f"example_inputs of shape {', '.join(map(str, empty))} hold nothing: pass a sample")
    filled = {id(x): x.new_zeros((1, *x.shape[1:])) for x in given}
    if kwargs:
        return {name: filled.get(id(x), x) for name, x in kwargs.items()}
    return tuple(filled.get(id(x), x) for x in args)


def guesses(model: nn.Module) -> Iterator[Tensor]:
    """Inputs that may fit, likeliest first: the size that timm's configuration names, then the first layer's channels."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    options = {"dtype": like.dtype, "device": like.device}
    for attribute in ("pretrained_cfg", "default_cfg"):
        configuration = vars(model).get(attribute)
        if isinstance(configuration, Mapping) and configuration.get("input_size"):
            yield _pattern((1, *configuration["input_size"]), options)
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            yield _pattern((1, module.in_channels, *_SIZES[len(module.kernel_size)]), options)
            return
        if isinstance(module, nn.Linear):
            yield _pattern((2, module.in_features), options)
            return


def _pattern(shape: tuple[int, ...], options: dict[str, Any]) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.linspace(-1, 1, count, dtype=torch.float32).reshape(shape).to(**options)
