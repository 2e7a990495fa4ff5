"""How values lie in memory.

``aten.view`` works or raises depending on the order of its operand's axes in memory, which the export settled by what stood there. A
convolution may write its result in another order than the ops that it replaces; then what follows is worked out anew, on fake tensors,
until the orders meet again, and where a view would fail the result is copied into the order that it had.
"""

from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node

from unbranch.frontends.exported.nodes import mapped
from unbranch.frontends.exported.sizes import Numbers

FAILURES = (RuntimeError, ValueError)
"""What a fake op raises for operands that it does not take."""

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Memory formats with the channels innermost, by number of axes."""


def order(value: Tensor, numbers: Numbers) -> tuple[int, ...]:
    """The axes longer than one, outermost in memory first."""
    long = [axis for axis, size in enumerate(value.shape) if numbers(size) != 1]
    return tuple(sorted(long, key=lambda axis: -numbers(value.stride(axis))))


def settle(graph: Graph, result: Node, before: Tensor, numbers: Numbers) -> None:
    """Give ``result``, which stands where ``before`` was, and all that follows the strides that they have."""
    wanted = order(before, numbers)
    if order(result.meta["val"], numbers) == wanted:
        result.meta["val"] = before
        return
    changed = _followed(result, numbers)
    if changed is not None:
        for node, value in changed.items():
            node.meta["val"] = value
        return
    users = list(result.users)
    copied = _copied(graph, result, wanted)
    for user in users:
        user.replace_input_with(result, copied)


def _copied(graph: Graph, value: Node, wanted: tuple[int, ...]) -> Node:
    """``value`` copied, its axes in the order ``wanted`` in memory."""
    ndim = value.meta["val"].ndim
    axes = [*(axis for axis in range(ndim) if axis not in wanted), *wanted]
    aten = torch.ops.aten
    steps: list[tuple[OpOverload, tuple[Any, ...], dict[str, Any]]]
    if axes == [0, *range(2, ndim), 1] and ndim in LAST:
        steps = [(aten.clone.default, (), {"memory_format": LAST[ndim]})]
    else:
        steps = [
            (aten.permute.default, (axes,), {}),
            (aten.clone.default, (), {"memory_format": torch.contiguous_format}),
            (aten.permute.default, ([axes.index(axis) for axis in range(ndim)],), {}),
        ]
    for target, args, kwargs in steps:
        with graph.inserting_after(value):
            made = graph.call_function(target, (value, *args), kwargs)
        made.meta = dict(value.meta)
        made.meta["val"] = evaluated(made, {})
        value = made
    return value


def _followed(result: Node, numbers: Numbers) -> dict[Node, Any] | None:
    """New values of the nodes whose memory order changes with ``result``'s; None where one of them would fail."""
    changed: dict[Node, Any] = {result: result.meta["val"]}
    node = result.next
    while node.op == "call_function":
        if any(n in changed for n in node.all_input_nodes):
            try:
                value = evaluated(node, changed)
            except FAILURES:
                return None
            if not _same_order(value, node.meta.get("val"), numbers):
                changed[node] = value
        node = node.next
    return changed


def _same_order(a: Any, b: Any, numbers: Numbers) -> bool:
    if isinstance(a, list | tuple):
        return all(_same_order(x, y, numbers) for x, y in zip(a, b, strict=True))
    return not isinstance(a, Tensor) or order(a, numbers) == order(b, numbers)


def evaluated(node: Node, changed: dict[Node, Any]) -> Any:
    """What a node returns on fake tensors, some of them others than its inputs' own."""
    args, kwargs = mapped((node.args, dict(node.kwargs)), lambda n: changed.get(n, n.meta.get("val")))
    values = [n.meta.get("val") for n in node.all_input_nodes]
    fakes = [value for value in values if isinstance(value, FakeTensor)]
    if not fakes or not callable(node.target):
        raise ValueError(f"{node.name} is not run on fake tensors")
    # Some kernels cannot do without the Python dispatcher where sizes are symbolic: a pad that crops, for one.
    with enable_python_dispatcher(), fakes[0].fake_mode:
        return node.target(*args, **kwargs)
