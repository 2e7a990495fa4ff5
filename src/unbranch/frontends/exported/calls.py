"""An affine map as calls of torch's ops, in the dialect of the program that they go into."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.fx import Graph, Node

from unbranch.affine import Geometry
from unbranch.frontends.exported.sizes import difference
from unbranch.frontends.exported.strides import FAILURES, evaluated
from unbranch.frontends.modules.emit import native_padding, output_padding

aten = torch.ops.aten

_CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_SAME = {1: aten.conv1d.padding, 2: aten.conv2d.padding, 3: aten.conv3d.padding}
_TRANSPOSED = {
    1: aten.conv_transpose1d.default,
    2: aten.conv_transpose2d.input,
    3: aten.conv_transpose3d.input,
}
_PADS = {
    "reflect": {
        1: aten.reflection_pad1d.default,
        2: aten.reflection_pad2d.default,
        3: aten.reflection_pad3d.default,
    },
    "replicate": {
        1: aten.replication_pad1d.default,
        2: aten.replication_pad2d.default,
        3: aten.replication_pad3d.default,
    },
}


class Calls:
    """Makes nodes with what later passes ask of them: a fake value and the module they belong to.

    A program as exported has layers' ops (``conv2d``, ``linear``); one that was decomposed has the core ones (``convolution``, ``addmm``).
    """

    def __init__(self, graph: Graph, core: bool, meta: dict[str, Any]) -> None:
        self.graph, self.core, self.meta = graph, core, meta
        self.made: list[Node] = []

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """One call."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta = dict(self.meta)
        node.meta["val"] = evaluated(node, {})
        self.made.append(node)
        return node

    def repeat(self, move: Node, value: Node, copies: dict[Node, Node]) -> Node:
        """A view of the region, of ``value`` instead; where it does not lie so that this works, of a copy."""
        first = move.args[0]
        node = self.graph.node_copy(move, lambda n: value if n is first else copies[n])
        try:
            node.meta["val"] = evaluated(node, {})
        except FAILURES:
            self.graph.erase_node(node)
            return self.repeat(move, self.row_major(value), copies)
        self.made.append(node)
        return node

    def row_major(self, x: Node) -> Node:
        """A contiguous copy."""
        return self.call(aten.clone.default, x, memory_format=torch.contiguous_format)

    def map(self, geometry: Geometry, x: Node, weight: Node, bias: Node | None = None) -> Node:
        """``weight * x + bias``."""
        g = geometry
        if g.rank == 0:
            return self._linear(x, weight, bias)
        ones = [1] * g.rank
        if g.transposed:
            pads, extra = [before for before, _ in g.padding], list(output_padding(g))
            if self.core:
                return self._convolution(g, x, weight, bias, pads, extra)
            target = _TRANSPOSED[g.rank]
            return self.call(target, x, weight, bias, list(g.stride), pads, extra, g.groups, list(g.dilation))
        padding = native_padding(g) if g.mode == "zeros" or not g.is_padded else None
        if padding == "same" and not self.core:
            return self.call(_SAME[g.rank], x, weight, bias, ones, "same", list(g.dilation), g.groups)
        if padding is None or isinstance(padding, str):
            x, padding = self._padded(g, x), (0,) * g.rank
        if self.core:
            return self._convolution(g, x, weight, bias, list(padding), [0] * g.rank)
        target = _CONVOLUTIONS[g.rank]
        return self.call(target, x, weight, bias, list(g.stride), list(padding), list(g.dilation), g.groups)

    def _convolution(
        self, g: Geometry, x: Node, weight: Node, bias: Node | None, padding: list[int], extra: list[int]
    ) -> Node:
        return self.call(
            aten.convolution.default,
            *(x, weight, bias, list(g.stride), padding, list(g.dilation), g.transposed, extra, g.groups),
        )

    def _padded(self, g: Geometry, x: Node) -> Node:
        sides = [side for pair in reversed(g.padding) for side in pair]
        if g.mode == "zeros":
            return self.call(aten.constant_pad_nd.default, x, sides, 0.0)
        if g.mode == "circular":
            return self.call(aten.pad.default, x, sides, "circular")
        return self.call(_PADS[g.mode][g.rank], x, sides)

    def _linear(self, x: Node, weight: Node, bias: Node | None) -> Node:
        """``x A^T + b`` on the last axis."""
        if not self.core:
            return self.call(aten.linear.default, x, weight, bias)
        shape = x.meta["val"].shape
        matrix = self.call(aten.permute.default, weight, [1, 0])
        if len(shape) == 2:
            return self._product(x, matrix, bias)
        lead = [
            n if isinstance(n, int) else self.call(aten.sym_size.int, x, i) for i, n in enumerate(shape[:-1])
        ]
        fixed = [n for n in lead if isinstance(n, int)]
        rows = prod(fixed) if len(fixed) == len(lead) else -1
        if not _is_row_major(x.meta["val"]):
            x = self.row_major(x)
        flat = self.call(aten.view.default, x, [rows, shape[-1]])
        product = self._product(flat, matrix, bias)
        return self.call(aten.view.default, product, [*lead, weight.meta["val"].shape[0]])

    def _product(self, x: Node, matrix: Node, bias: Node | None) -> Node:
        return (
            self.call(aten.mm.default, x, matrix)
            if bias is None
            else self.call(aten.addmm.default, bias, x, matrix)
        )


def _is_row_major(value: torch.Tensor) -> bool:
    """Contiguous, whatever the sizes are."""
    step: int | torch.SymInt = 1
    for size, stride in zip(reversed(value.shape), reversed(value.stride()), strict=True):
        if difference(stride, step) != 0:
            return False
        step = step * size
    return True
