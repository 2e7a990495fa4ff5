"""Nodes that ask for a shape and not for numbers, and the bounds of slices, symbolic ones included."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from unbranch.frontends.exported.nodes import operand
from unbranch.frontends.exported.sizes import difference

END = 2**31 - 1

FILLS_IN_PLACE = {"aten.copy_.default", "aten.fill_.Scalar", "aten.fill_.Tensor", "aten.zero_.default"}
"""What overwrites its operand whole."""

SHAPED_LIKE: dict[str, float | None] = {
    "aten.copy.default": None,
    "aten.fill.Scalar": None,
    "aten.fill.Tensor": None,
    "aten.full_like.default": None,
    "aten.zeros_like.default": 0.0,
    "aten.ones_like.default": 1.0,
}
"""Ops that take only the shape of their first operand, and the number that fills it where no argument says."""

VIEWS = {"aten.slice.Tensor", "aten.select.int"}

SHAPE_QUESTIONS = ("aten.sym_", "aten._assert_tensor_metadata")


def shape_only(nodes: Sequence[Node]) -> set[Node]:
    """The slices of which nobody reads the numbers, although something may be written into them."""
    found: set[Node] = set()
    for node in reversed(nodes):
        is_view = node.op == "call_function" and str(node.target) in VIEWS
        if is_view and node.users and all(asks_shape(user, node) or user in found for user in node.users):
            found.add(node)
    return found


def asks_shape(user: Node, node: Node) -> bool:
    """``user`` does not read ``node``'s numbers."""
    spelling = str(user.target)
    if spelling.startswith(SHAPE_QUESTIONS):
        return True
    first = bool(user.args) and user.args[0] is node and node not in user.args[1:]
    if spelling in FILLS_IN_PLACE:
        return first and not user.users
    return first and (
        spelling in SHAPED_LIKE or (spelling == "aten.slice_scatter.default" and is_whole(user))
    )


def is_whole(node: Node) -> bool:
    """A slice, or a write to a slice, that spans its axis."""
    where = bounds(node)
    return where is not None and where[1:] == (0, None, 1)


class _BySize(ValueError):
    """A bound whose meaning depends on the input's size."""


def bounds(node: Node) -> tuple[int, int, int | None, int] | None:
    """(axis, start, stop, step) of a slice, a select or a write to a slice, the same for every size; None where it is not.

    What lies at the end of an axis is counted from the end, symbolic bounds included: ``x[1 : h + 1]`` of an axis ``h + 2`` is ``x[1:-1]``.
    """
    first = 2 if str(node.target) == "aten.slice_scatter.default" else 1
    given: dict[str, Any] = dict(zip(("dim", "start", "end", "step"), node.args[first:], strict=False))
    given |= node.kwargs
    shape = operand(node).meta["val"].shape
    axis = given.get("dim", 0) % len(shape)
    try:
        if str(node.target) == "aten.select.int":
            start = _start(_plain(node.args[2]), shape[axis])
            return axis, start, None if start == -1 else start + 1, 1
        step = given.get("step", 1)
        if not isinstance(step, int):
            return None
        start, stop = _plain(given.get("start")), _plain(given.get("end"))
        return axis, _start(start, shape[axis]), _stop(stop, shape[axis]), step
    except _BySize:
        return None


def slab(node: Node) -> tuple[int, int, int | None, int] | None:
    """`bounds`, both counted from the end of the axis that they are nearer to: how a border is written."""
    where = bounds(node)
    size = None if where is None else operand(node).meta["val"].shape[where[0]]
    if where is None or not isinstance(size, int) or where[1:] == (0, None, 1):
        return where
    axis, start, stop, step = where
    first, last, _ = slice(start, stop).indices(size)
    if first < size - last:
        return axis, first, last, step
    return axis, first - size, None if last == size else last - size, step


def _plain(value: Any) -> int | torch.SymInt | None:
    """A bound as a number: nodes stand for sizes."""
    return value.meta["val"] if isinstance(value, Node) else value


def _start(index: int | torch.SymInt | None, size: int | torch.SymInt) -> int:
    """From the start where that is a plain number, else from the end."""
    if isinstance(index, int | None):
        return (index or 0) + size if (index or 0) < 0 and isinstance(size, int) else index or 0
    return -_before_end(index, size)


def _stop(index: int | torch.SymInt | None, size: int | torch.SymInt) -> int | None:
    """From the end, None for the end itself; a plain number of a symbolic axis stays what it is."""
    if index is None or (isinstance(index, int) and index >= END):
        return None
    if isinstance(index, int) and (index < 0 or isinstance(size, torch.SymInt)):
        return index
    gap = difference(index, size)
    if gap is None:
        raise _BySize
    return gap if gap < 0 else None


def _before_end(index: int | torch.SymInt, size: int | torch.SymInt) -> int:
    gap = difference(size, index)
    if gap is None or gap <= 0:
        raise _BySize
    return gap
