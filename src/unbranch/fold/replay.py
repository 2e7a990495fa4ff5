"""Run a part of the graph on its own: the recorded ATen calls, one after the other."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.affine import NotLinear
from unbranch.fold.facts import Fact
from unbranch.fold.graph import Graph, Node
from unbranch.ops import Operand


class Replay(nn.Module):
    """The region of a fact as a module from its source to its value: the very calls that were recorded.

    Raises:
        NotLinear: a call is none of torch's.
    """

    def __init__(self, graph: Graph, fact: Fact) -> None:
        super().__init__()
        self.source, self.value = fact.source, fact.value
        self.calls = [(_overload(node), node) for node in (graph.nodes[i] for i in sorted(fact.members))]

    def forward(self, x: Tensor) -> Tensor:
        """The value for one source."""
        values = {self.source: x}
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
    return getattr(getattr(torch.ops.aten, name), overload)


def _filled(tree: Any, values: Mapping[int, Tensor]) -> Any:
    if isinstance(tree, Operand):
        shape_alone = (
            tree.index not in values
        )  # only `reshape_as` and its like read a value from outside, for its shape
        return torch.zeros(tree.shape, dtype=tree.dtype) if shape_alone else values[tree.index]
    if isinstance(tree, list | tuple):
        return type(tree)(_filled(item, values) for item in tree)
    if isinstance(tree, dict):
        return {key: _filled(item, values) for key, item in tree.items()}
    return tree
