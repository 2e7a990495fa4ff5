"""The table of ops: which spelling is read by whom, and the kinds of record a reader may return.

A *reader* is a function whose signature is the schema of the op it reads, defaults included, so an argument that we do not
know cannot bind and is refused: a closed world. It returns a frozen record, or one for each output, or raises `NotLinear`.
Arguments that depend on the network's input arrive as `Operand`; everything else arrives as it is.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from unbranch.affine import Affine, NotLinear


@dataclass(frozen=True)
class Operand:
    """A value that depends on the network's input: all a reader may know of it. ``index`` is its number in the graph."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    index: int = -1

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)


class Record:
    """What an op is, once read. The kinds below are all there are; an op is one of them."""


class Map(Record, ABC):
    """An op that maps each sample linearly: ``y = W * x + b`` along one channel axis.

    ``axis`` is the operand's channel axis, -1 for the last, None where any will do. A record whose `affine` has rank 0
    is pointwise and fits a value with any number of spatial axes; any other rank must be the value's own.
    """

    axis: int | None = 1

    @abstractmethod
    def affine(self, channels: int) -> Affine:
        """The map for an operand with so many channels. Raises `NotLinear` where it is none."""


@dataclass(frozen=True)
class Sum(Record):
    """``sum(factor * operand)``: addition, subtraction, and a sum with an alpha."""

    factors: tuple[float, ...]


@dataclass(frozen=True)
class Concat(Record):
    """The operands side by side along ``axis``."""

    axis: int


@dataclass(frozen=True)
class Slice(Record):
    """``x[start:stop:step]`` along ``axis``; ``stop`` None means to the end."""

    axis: int
    start: int
    stop: int | None
    step: int = 1


@dataclass(frozen=True)
class Take(Record):
    """The entries ``indices`` along ``axis``, in that order."""

    axis: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Reshape(Record):
    """The same elements in the same order under another shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Permute(Record):
    """The axes in another order."""

    axes: tuple[int, ...]


@dataclass(frozen=True)
class Identity(Record):
    """The operand itself."""


@dataclass(frozen=True)
class Pad(Record):
    """A border of a constant: ``pads`` is a (before, after) pair for each axis of the operand.

    A tensor ``value`` has the operand's axes and must be the same at every position of a channel.
    """

    pads: tuple[tuple[int, int], ...]
    value: float | Tensor = 0.0


@dataclass(frozen=True, eq=False)
class Write(Record):
    """The operand with one slab, ``[start:stop]`` along ``axis`` and everything along the others, set to a constant.

    ``value`` broadcasts against the operand. ``stop`` is non-negative, or None for the end; a negative ``start`` counts from the end.
    """

    axis: int
    start: int
    stop: int | None
    value: Tensor


Argument: TypeAlias = Operand | Tensor | None
"""An input of an ONNX op: a value, a constant, or left out; which of them it must be is for the reader to say."""

Reader = Callable[..., Record | tuple[Record | None, ...]]
AnyReader = TypeVar("AnyReader", bound=Reader)


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    spelling: str
    reader: Reader
    signature: inspect.Signature


TABLE: dict[str, Entry] = {}


def reads(*spellings: str) -> Callable[[AnyReader], AnyReader]:
    """Register a reader for spellings such as ``aten.relu.default`` or ``onnx.Relu``.

    Raises:
        ValueError: a spelling has a reader already.
    """

    def register(reader: AnyReader) -> AnyReader:
        for spelling in spellings:
            if spelling in TABLE:
                raise ValueError(
                    f"two readers for {spelling}: {TABLE[spelling].reader.__name__} and {reader.__name__}"
                )
            TABLE[spelling] = Entry(spelling, reader, inspect.signature(reader))
        return reader

    return register


def read(spelling: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Record | None, ...]:
    """The records of one call, one for each of its outputs.

    Raises:
        NotLinear: the op is not in the table, has an argument that we do not know, or is not linear as called.
    """
    entry = TABLE.get(spelling)
    if entry is None:
        raise NotLinear(f"{spelling} is not a linear op")
    try:
        bound = entry.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise NotLinear(f"{spelling}: {error}") from error
    records = entry.reader(*bound.args, **bound.kwargs)
    return records if isinstance(records, tuple) else (records,)


def operand(value: Any, name: str) -> Operand:
    """``value``, which must depend on the network's input."""
    if not isinstance(value, Operand):
        raise NotLinear(f"{name} does not depend on the input")
    return value


def constant(value: Any, name: str) -> Any:
    """``value``, which must not depend on the network's input."""
    if isinstance(value, Operand):
        raise NotLinear(f"{name} depends on the input")
    return value


def axis_of(value: Operand, axis: int) -> int:
    """``axis`` counted from the front; a single number has none, although torch lets one be named."""
    if not value.ndim:
        raise NotLinear("a value without axes")
    return axis % value.ndim


def integers(value: Argument, name: str) -> list[int]:
    """The numbers of a constant list, such as axes or sizes."""
    numbers = constant(value, name)
    if numbers is None or numbers.ndim != 1:
        raise NotLinear(f"{name}: no list of numbers")
    return numbers.tolist()


def per_axis(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One integer for each of ``rank`` axes, from a number or from a list of one or ``rank``."""
    values = (value,) if isinstance(value, int) else tuple(value)
    if len(values) not in (1, rank):
        raise NotLinear(f"{values} for {rank} axes")
    return values * rank if len(values) == 1 else values


def onnx_padding(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    auto_pad: str,
    pads: Sequence[int] | None,
) -> list[tuple[int, int]]:
    """ONNX's padding of a window op as a (before, after) pair per axis: ``pads`` lists all befores, then all afters.

    ``SAME`` pads so that the output has ceil(size / stride) positions, an odd total with one more after (UPPER) or before (LOWER).
    """
    rank = len(kernel)
    if auto_pad == "NOTSET":
        sides = list(pads or (0,) * 2 * rank)
        return list(zip(sides[:rank], sides[rank:], strict=True))
    if auto_pad == "VALID":
        return [(0, 0)] * rank
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise NotLinear(f"auto_pad {auto_pad!r}")
    result = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
        smaller = total // 2
        result.append((smaller, total - smaller) if auto_pad == "SAME_UPPER" else (total - smaller, smaller))
    return result


def along_axis(tensor: Tensor, shape: tuple[int, ...]) -> tuple[int | None, Tensor]:
    """The one axis of ``shape`` along which ``tensor`` varies when broadcast to it, and its values there.

    The axis is None, and the values one number, where it varies along none.

    Raises:
        NotLinear: it varies along more than one, or makes the value larger.
    """
    if tensor.ndim > len(shape):
        raise NotLinear(f"a constant of shape {tuple(tensor.shape)} broadcasts a value of shape {shape}")
    lead = len(shape) - tensor.ndim
    varying = [lead + i for i, n in enumerate(tensor.shape) if n != 1]
    if any(tensor.shape[i - lead] != shape[i] for i in varying):
        raise NotLinear(f"a constant of shape {tuple(tensor.shape)} broadcasts a value of shape {shape}")
    if len(varying) > 1 and not tensor.is_meta:
        for axis in range(tensor.ndim):
            first = tensor.narrow(axis, 0, 1)
            tensor = first if bool((tensor == first).all()) else tensor
        varying = [lead + i for i, n in enumerate(tensor.shape) if n != 1]
    if len(varying) > 1:
        raise NotLinear(
            f"a constant of shape {tuple(tensor.shape)} differs from position to position of a value {shape}"
        )
    return (varying[0] if varying else None), tensor.flatten()


def finite(tensor: Tensor, name: str) -> Tensor:
    """``tensor``, which must hold no infinity: times the zeros of a wider kernel it would be no number."""
    if not tensor.is_meta and not bool(tensor.isfinite().all()):
        raise NotLinear(f"{name} is not finite")
    return tensor
