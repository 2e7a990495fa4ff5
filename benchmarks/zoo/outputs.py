"""The outputs of a network, by path, those of watched modules among them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unbranch.fold.certificate import fold_error, tensors_in

AGREE = 1e-2
"""Two libraries' forms of one output agree to this; other things of the same name do not."""


@torch.no_grad()
def outputs_of(model: Any, inputs: tuple[Any, ...], watched: Sequence[str]) -> dict[str, Tensor]:
    """Every tensor that a run returns, and every one that a call of a watched module returns."""
    found: dict[str, Tensor] = {}
    handles = []
    for path in watched:

        def catch(module: Any, args: Any, output: Any, path: str = path) -> None:
            found.update(tensors_in(output, path))

        handles.append(model.get_submodule(path).register_forward_hook(catch))
    try:
        found.update(tensors_in(model(*inputs)))
    finally:
        for handle in handles:
            handle.remove()
    return found


def agreeing(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> set[str]:
    """The outputs that both give: of the same path, shape and, within rounding, content."""
    return {
        key
        for key in ours
        if key in theirs
        and ours[key].shape == theirs[key].shape
        and fold_error(theirs[key], ours[key]) <= AGREE
    }
