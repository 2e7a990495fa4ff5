"""What the recorder must know of torch's own functions: which read numbers back, which ask for sizes, which write."""

from typing import Any

import torch
from torch import Tensor

from unbranch.affine import NotLinear
from unbranch.frontends.modules.numbers import is_own, is_sized, plain
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
    Tensor.__complex__,
    Tensor.__repr__,
    Tensor.__format__,
    Tensor.__dlpack__,
    Tensor.equal,
    Tensor.allclose,
    Tensor.is_nonzero,
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

LOOKS = {
    Tensor.nbytes.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.is_same_size,
    Tensor.untyped_storage,
    torch.is_same_size,
}
"""What tells of a value's size in another way."""

_PIECES = {Tensor.split, torch.split, Tensor.unbind, torch.unbind, Tensor.__iter__}

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


def counts_pieces(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> bool:
    """The call makes as many pieces as the batch, or a picture's height, asks for; or one piece, where a larger input has more."""
    value = _operand(args, kwargs)
    if func not in _PIECES or not isinstance(value, Tensor):
        return False
    splits = func in (Tensor.split, torch.split)
    size = args[1] if len(args) > 1 else kwargs.get("split_size", kwargs.get("split_size_or_sections"))
    if splits and not isinstance(size, int):
        return False
    at = 2 if splits else 1
    dim = args[at] if len(args) > at else kwargs.get("dim", 0)
    varying = (0, 2) if value.ndim == 4 else (0,)
    return (value.ndim <= 4 and dim % max(1, value.ndim) in varying) or (splits and len(result) == 1)


def means_less(func: Any, args: Any, kwargs: dict[str, Any]) -> str | None:
    """Why a view's sizes may mean something else at another size; None where they do not. They are as the forward gave them."""
    value = _operand(args, kwargs)
    if func not in (Tensor.view, Tensor.reshape, torch.reshape) or not isinstance(value, Tensor):
        return None
    asked = kwargs.get("shape", kwargs.get("size", args[1:]))
    if len(asked) == 1 and isinstance(asked[0], list | tuple):
        (asked,) = asked
    if any(is_sized(n) and plain(n) == 1 and not is_own(n) for n in asked):
        return "a view's size is computed from the input's, and was 1"
    if not any(type(n) is int and n == -1 for n in asked):
        return None
    pairs = zip(reversed(asked), reversed(value.shape), strict=False)
    literal = [type(n) is int and n > 1 and n == size for n, size in pairs]
    first = asked[0] if type(asked[0]) is int else 0
    if first == -1 and value.ndim >= 4 and sum(literal[: value.ndim - 1]) > 1:
        return "a view names a size that the input happens to have"
    return "a view takes the batch for one" if first == 1 == value.shape[0] else None


def _operand(args: Any, kwargs: dict[str, Any]) -> Any:
    """What a torch function works on."""
    return args[0] if args else kwargs.get("input", kwargs.get("tensor"))


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


def slab_of(spelling: str, given: Any, cut: tuple[int, int, int | None], rank: int) -> list[Any]:
    """(source, axis, start, stop) of a constant that is written to one slice, or one position, of a value of so many axes."""
    source = given if isinstance(given, Tensor) else torch.tensor(float(given))
    axis, start, stop = cut
    axis %= rank
    missing = rank - axis - 1
    if spelling == "aten.select.int" and source.ndim >= missing:
        source = source.unsqueeze(source.ndim - missing)
    return [source, axis, start, stop]
