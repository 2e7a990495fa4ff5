"""Read a pickle without running anything that it names.

A pickle is a program for a stack machine. Python's own machine imports whatever the program names and calls
it, so loading a pickle is running a stranger's code. This one knows the opcodes that PyTorch writes
(protocols 2 to 4) and has no import in it: a name becomes a `Global`, a call or an object becomes a `Record`
that says what was asked for, and only the constructors handed to `read_pickle` are ever called. Whatever else
stands in the file is refused.
"""

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unbranch.detect.errors import InputError


@dataclass(frozen=True)
class Global:
    """The name of a class or function that a pickle asks for; the thing itself is never looked up.

    >>> str(Global("os", "system"))
    'os.system'
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Record:
    """An object of a class that we do not have: its class, the arguments it was to be made with, and its
    state.

    It has no behaviour. `state` is what the pickle would have handed to `__setstate__` (for most objects: a
    dict of attributes), `items` what it would have appended or set.

    >>> Record(Global("models.common", "Conv"), state={"training": False}).attributes
    {'training': False}
    """

    kind: Global
    arguments: tuple[Any, ...] = field(default=(), repr=False)
    state: Any = field(default=None, repr=False)
    items: list[Any] = field(default_factory=list, repr=False)

    @property
    def attributes(self) -> dict[str, Any]:
        """The state as a dict of attributes; empty where the state is something else."""
        return self.state if isinstance(self.state, dict) else {}


Constructor = Callable[..., Any]
Scalar = (str, bytes, int, float, bool, type(None), Global, Record)


def ordered_dict(*arguments: Any) -> OrderedDict[Any, Any]:
    """`collections.OrderedDict` from nothing or from a list of pairs."""
    pairs = arguments[0] if arguments else []
    if len(arguments) > 1 or not isinstance(pairs, list):
        raise ValueError("an OrderedDict is made from nothing or from one list of pairs")
    result: OrderedDict[Any, Any] = OrderedDict()
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError("an OrderedDict is made from pairs")
        result[hashable(pair[0])] = pair[1]
    return result


def plain_set(*arguments: Any) -> set[Any]:
    """`set` from nothing or from a list of plain values."""
    values = arguments[0] if arguments else []
    if len(arguments) > 1 or not isinstance(values, list):
        raise ValueError("a set is made from nothing or from one list")
    return {hashable(value) for value in values}


def hashable(key: Any) -> Any:
    """`key` itself, if it is a plain value or a flat tuple of them.

    Hashing a tuple descends into it without a limit, so a file could nest tuples until the interpreter
    crashes.
    """
    flat = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(part, Scalar) for part in flat):
        raise ValueError(f"a {type(key).__name__} of that shape as a key")
    return key


PLAIN_CONSTRUCTORS: Mapping[Global, Constructor] = {
    Global("collections", "OrderedDict"): ordered_dict,
    Global("builtins", "set"): plain_set,
    Global("__builtin__", "set"): plain_set,
}


def read_pickle(
    data: bytes,
    where: str,
    constructors: Mapping[Global, Constructor] = PLAIN_CONSTRUCTORS,
    load_persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The object that a pickle describes, made of plain values, `Global` and `Record` only.

    `constructors` is the closed list of names that are called, each with our function for it;
    `load_persistent` is given each persistent id (PyTorch keeps its storages so). `where` names the file in
    errors.

    Raises `InputError` for an opcode that PyTorch does not write, a stack that does not add up, or a cut-off
    file.

    >>> import pickle
    >>> read_pickle(pickle.dumps({"a": [1, (2, 3)]}, protocol=2), "example")
    {'a': [1, (2, 3)]}
    """
    machine = _Machine(constructors, load_persistent)
    position = 0
    try:
        for opcode, argument, at in pickletools.genops(data):
            position = at or 0
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"{where}: not a pickle that PyTorch writes, at byte {position}: {error}") from error
    raise InputError(f"{where}: the pickle ends early, after {len(data)} bytes; the file is cut off")


class _Mark:
    """The place on the stack where a list of arguments begins."""


class _Machine:
    """Stack, memo and one method for each family of opcodes."""

    def __init__(
        self, constructors: Mapping[Global, Constructor], load_persistent: Callable[[Any], Any] | None
    ) -> None:
        self.constructors = constructors
        self.load_persistent = load_persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSHES_ITS_ARGUMENT:
            self.stack.append(argument)
        elif name in _PUSHES_A_CONSTANT:
            self.stack.append(_PUSHES_A_CONSTANT[name]())
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"opcode {name} is not one that PyTorch writes")

    def pop(self) -> Any:
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise ValueError("a mark where a value should be")
        return value

    def top(self) -> Any:
        value = self.stack[-1]
        if isinstance(value, _Mark):
            raise ValueError("a mark where a value should be")
        return value

    def pop_to_mark(self) -> list[Any]:
        values: list[Any] = []
        while not isinstance(value := self.stack.pop(), _Mark):
            values.append(value)
        return values[::-1]

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(values[::-1]))

    def put(self, key: int) -> None:
        self.memo[key] = self.top()

    def named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is not text")
        self.stack.append(Global(module, name))

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is not a name with a tuple of arguments")
        constructor = self.constructors.get(function)
        self.stack.append(Record(function, arguments) if constructor is None else constructor(*arguments))

    def new_object(self, has_keywords: bool) -> None:
        keywords = self.pop() if has_keywords else {}
        arguments, kind = self.pop(), self.pop()
        if not isinstance(kind, Global) or not isinstance(arguments, tuple) or not isinstance(keywords, dict):
            raise ValueError("an object of something that is not a class name")
        self.stack.append(Record(kind, (*arguments, keywords) if keywords else arguments))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, OrderedDict):  # a state dict's `_metadata`: version numbers, not needed
            raise ValueError(f"state for a {type(target).__name__}, which has none")

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Record):
            target.items.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise ValueError(f"appending to a {type(target).__name__}")

    def set_items(self, flat: list[Any]) -> None:
        target = self.top()
        if len(flat) % 2:
            raise ValueError("a key without a value")
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        if isinstance(target, Record):
            target.items.extend(pairs)
        elif isinstance(target, dict):
            target.update((hashable(key), value) for key, value in pairs)
        else:
            raise ValueError(f"setting items of a {type(target).__name__}")

    def add_items(self) -> None:
        values, target = self.pop_to_mark(), self.top()
        if not isinstance(target, set):
            raise ValueError(f"adding to a {type(target).__name__}")
        target.update(hashable(value) for value in values)

    def persistent(self) -> None:
        key = self.pop()
        if self.load_persistent is None:
            raise ValueError("a persistent id, in a pickle that should have none")
        self.stack.append(self.load_persistent(key))


def _set_pair(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _append(machine: _Machine) -> None:
    value = machine.pop()
    machine.extend([value])


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.named(module, name)


_PUSHES_ITS_ARGUMENT = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    )
)

_PUSHES_A_CONSTANT: Mapping[str, Callable[[], Any]] = {
    "MARK": _Mark,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}

_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "POP": lambda m, _: (m.stack.pop(), None)[1],
    "POP_MARK": lambda m, _: (m.pop_to_mark(), None)[1],
    "DUP": lambda m, _: m.stack.append(m.top()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "APPEND": lambda m, _: _append(m),
    "APPENDS": lambda m, _: m.extend(m.pop_to_mark()),
    "SETITEM": lambda m, _: _set_pair(m),
    "SETITEMS": lambda m, _: m.set_items(m.pop_to_mark()),
    "ADDITEMS": lambda m, _: m.add_items(),
    "BINPUT": lambda m, key: m.put(key),
    "LONG_BINPUT": lambda m, key: m.put(key),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "BINGET": lambda m, key: m.stack.append(m.memo[key]),
    "LONG_BINGET": lambda m, key: m.stack.append(m.memo[key]),
    "GLOBAL": lambda m, name: m.named(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: _stack_global(m),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.new_object(has_keywords=False),
    "NEWOBJ_EX": lambda m, _: m.new_object(has_keywords=True),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.persistent(),
}
