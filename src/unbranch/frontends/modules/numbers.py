"""Numbers that come from the input's size, and know when Python looks at them.

A recording sees one size. Wherever a forward branches on a size, loops over one or computes an argument from one, it may do something
else at another size, and what was recorded there cannot be trusted. While a model is recorded, sizes are `Sized` numbers: arithmetic keeps
them, a comparison or a conversion to a plain number reports to the recorder and returns the plain value, so the forward runs on.
"""

import math
import operator
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, no_type_check

import numpy
import torch

Plain = int | float | bool
Place = tuple[int, CodeType, int]
"""One instruction of one running Python function."""

READ = "a number read from the input's size"


def place_of(frame: FrameType) -> Place:
    """The instruction that a running function is at."""
    return id(frame), frame.f_code, frame.f_lasti


class Sized:
    """A number computed from a size. It says it is an int (or float, or bool), and is none to C code, which asks for its value."""

    __slots__ = ("_own", "_report", "_value")

    def __init__(self, value: Plain, report: Callable[[str, Place | None], None], own: bool = False) -> None:
        """``report`` is called with what was asked whenever the plain value leaves, and where, if C code asked.

        Torch looks at its arguments before it shows a call to anyone: only that call tells such a look from a real reading.
        ``own``: it is a size as a tensor has it, and not computed from one.
        """
        self._value = value
        self._report = report
        self._own = own

    @property
    def __class__(self) -> type:
        return type(self._value)

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("the class of a size cannot be set")

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Reached only where no recorder is active any more: torch sees the plain value."""
        return func(*plain(args), **plain(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        """What a plain number has beyond arithmetic, such as ``bit_length`` and ``is_integer``."""
        return getattr(self._leave(READ), name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return numpy.asarray(self._leave(READ), dtype)

    def __copy__(self) -> Plain:
        return self._leave(READ)

    def __deepcopy__(self, memo: dict) -> Plain:
        return self._leave(READ)

    def __reduce__(self) -> tuple:
        return type(self._value), (self._leave(READ),)

    def __repr__(self) -> str:
        return repr(self._value)  # for messages, as of assertions that hold

    def __format__(self, spec: str) -> str:
        return format(self._value, spec)

    def __hash__(self) -> int:
        return self._leave("a look-up by size")

    def _leave(self, what: str) -> Any:
        self._report(what, None)
        return self._value

    def __bool__(self) -> bool:
        return bool(self._leave("a branch on the input's size"))

    def __int__(self) -> int:
        return int(self._leave(READ))

    @no_type_check  # the caller's frame is asked for
    def __index__(self) -> int:
        self._report(READ, place_of(sys._getframe(1)))
        return operator.index(self._value)

    def __float__(self) -> float:
        return float(self._leave(READ))


def _keeping(function: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    def method(self: Sized, *others: Any) -> Any:
        value = object.__getattribute__(self, "_value")
        report = object.__getattribute__(self, "_report")
        if any(isinstance(other, torch.Tensor) for other in others):
            return NotImplemented
        values = [value, *(plain(other) for other in others)]
        result = function(*(reversed(values) if reflected else values))
        if isinstance(result, tuple):
            return tuple(Sized(part, report) for part in result)
        return Sized(result, report) if isinstance(result, int | float) else result

    return method


_TWO_SIDED = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "lshift",
    "rshift",
    "and_",
    "or_",
    "xor",
)
for _name, _function in [*((name, getattr(operator, name)) for name in _TWO_SIDED), ("divmod", divmod)]:
    setattr(Sized, f"__{_name.rstrip('_')}__", _keeping(_function))
    setattr(Sized, f"__r{_name.rstrip('_')}__", _keeping(_function, reflected=True))
for _name in ("neg", "pos", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Sized, f"__{_name}__", _keeping(getattr(operator, _name)))
for _name, _function in (("round", round), ("ceil", math.ceil), ("floor", math.floor), ("trunc", math.trunc)):
    setattr(Sized, f"__{_name}__", _keeping(_function))


class Size(tuple):
    """A shape of `Sized` numbers, with what `torch.Size` has beyond a tuple."""

    __slots__ = ()

    def numel(self) -> Any:
        """The product of the sizes."""
        return math.prod(self)

    def __getitem__(self, at: Any) -> Any:
        item = super().__getitem__(at)
        return Size(item) if isinstance(at, slice) else item


def is_sized(value: Any) -> bool:
    """``value`` is a number from a size; ``isinstance`` would believe what it says of itself."""
    return type(value) is Sized


def is_own(size: Sized) -> bool:
    """It is a size as a tensor has it."""
    return object.__getattribute__(size, "_own")


def plain(tree: Any) -> Any:
    """Nested arguments with every `Sized` as its plain value."""
    if is_sized(tree):
        return object.__getattribute__(tree, "_value")
    if type(tree) is slice:
        return slice(plain(tree.start), plain(tree.stop), plain(tree.step))
    if type(tree) in (list, tuple, Size, torch.Size):
        items = [plain(item) for item in tree]
        return (
            items
            if type(tree) is list
            else torch.Size(items)
            if type(tree) in (Size, torch.Size)
            else tuple(items)
        )
    if type(tree) is dict:
        return {key: plain(item) for key, item in tree.items()}
    return tree


def mentions_size(tree: Any) -> bool:
    """A `Sized` is somewhere in nested arguments."""
    if is_sized(tree):
        return True
    if type(tree) is slice:
        return any(is_sized(part) for part in (tree.start, tree.stop, tree.step))
    if isinstance(tree, list | tuple):
        return any(mentions_size(item) for item in tree)
    if isinstance(tree, dict):
        return any(mentions_size(item) for item in tree.values())
    return False
