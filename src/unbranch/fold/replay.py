"""Run a part of the graph on its own: the recorded ATen calls, one after the other."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.affine import NotLinear
from unbranch.fold.graph import Node
from unbranch.ops import Operand


class Replay(nn.Module):
    """Some nodes as a module from ``sources`` to ``value``: the very calls that were recorded.

    Raises:
        NotLinear: a call is none of torch's.
    """

    def __init__(self, nodes: Sequence[Node], sources: Sequence[int], value: int) -> None:
        super().__init__()
        self.sources, self.value = tuple(sources), value
        self.calls = [(_overload(node), node) for node in nodes]

    def forward(self, *inputs: Tensor) -> Tensor:
        """The value for one set of sources."""
        values = dict(zip(self.sources, inputs, strict=True))
        for call, node in self.calls:
            result = call(*_filled(node.args, values), **_filled(dict(node.kwargs), values))
            results = [result] if isinstance(result, Tensor) else list(result)
            values.update(zip(node.outputs, results, strict=True))
        return values[self.value]


def _overload(node: Node) -> Any:
    namespace, _, rest = node.spelling.partition(".")
    name, _, overload = rest.partition(".")
    if namespace != "aten" or not overload:
        raise NotLinear(f"{node.spelling} cannot be run on its own")
    # Written to in place the source would change from run to run.
    name = name.removesuffix("_") if name.endswith("_") else name
    return getattr(getattr(torch.ops.aten, name), overload)


def _filled(tree: Any, values: Mapping[int, Tensor]) -> Any:
    if isinstance(tree, Operand):
        # Only `reshape_as` and its like read a value from outside the part, for its shape.
        return values[tree.index] if tree.index in values else torch.zeros(tree.shape, dtype=tree.dtype)
    if isinstance(tree, list | tuple):
        return type(tree)(_filled(item, values) for item in tree)
    if isinstance(tree, dict):
        return {key: _filled(item, values) for key, item in tree.items()}
    return tree
