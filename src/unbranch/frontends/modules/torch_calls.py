"""What the recorder must know of torch's own functions: which read numbers back, which ask for sizes, which write."""

from typing import Any

import torch
from torch import Tensor

from unbranch.affine import NotLinear
from unbranch.frontends.modules.trees import tensors_of
from unbranch.ops import Identity, Permute, Reshape, read

READ_BACK = {
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__array__,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__contains__,
    torch.equal,
    torch.allclose,
    torch.is_nonzero,
}
"""What brings a value's numbers into Python, where anything may be done with them."""

SIZES = {
    Tensor.shape.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.size,
    Tensor.numel,
    Tensor.nelement,
    torch.numel,
    Tensor.__len__,
    Tensor.stride,
}
"""What asks a value for its size."""

FILLS = {"aten.copy_.default", "aten.fill_.Scalar", "aten.fill_.Tensor", "aten.zero_.default"}
"""What overwrites a view whole."""

THROUGH_VIEWS = FILLS | {"aten.slice.Tensor", "aten.select.int", "write"}
"""What a write into a slice leaves behind beside the written value."""


def written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an op writes to."""
    targets: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[position] if position < len(args) else kwargs.get(argument.name)
        targets.extend(tensors_of(given))
    return targets


def cuts(index: Any) -> bool:
    """Indexing that would leave something out of a longer value, though torch makes no op of it where there is nothing to leave out."""
    items = index if isinstance(index, tuple) else (index,)
    return any(isinstance(i, slice) and (i.start, i.stop) not in ((None, None), (0, None)) for i in items)


def grows(spelling: str, traced: Any) -> str | None:
    """Why the op may repeat a value of length 1, along the batch or in space; None where it does not."""
    args = traced[0]
    if spelling == "aten.expand.default":
        repeats = any(size > 1 for size in args[1][-len(args[0].shape) :])
        return "it would repeat an input of length 1" if repeats else None
    if spelling.removeprefix("aten.").split(".")[0].rstrip("_") not in ("add", "sub", "rsub", "mul", "div"):
        return None
    constants = [leaf.shape for leaf in args if isinstance(leaf, Tensor)]
    long = [tuple(shape) for shape in constants if sum(n > 1 for n in shape) > 1]
    return (
        f"a constant of shape {long[0]} is longer than 1 along other axes than the channels'"
        if long
        else None
    )


def arranges(spelling: str, traced: Any) -> bool:
    """The op only moves elements, so a size among its arguments is what one expects."""
    try:
        (record, *_) = read(spelling, traced[0], traced[1])
    except NotLinear:
        return False
    return isinstance(record, Reshape | Permute | Identity)


def bounds(spelling: str, args: Any) -> tuple[int, int, int | None]:
    """(axis, start, stop) of a slice or of one chosen position."""
    axis = args[1] if len(args) > 1 else 0
    start = (args[2] if len(args) > 2 else 0) or 0
    if spelling == "aten.select.int":
        return axis, start, None if start == -1 else start + 1
    return axis, start, args[3] if len(args) > 3 else None
