"""The neutral graph: a flat list of ops, read once, whatever front end it came from."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from unbranch.affine import Affine, Geometry, NotLinear
from unbranch.ops import Concat, Map, Operand, Record, Sum, read


@dataclass(frozen=True, eq=False)
class Node:
    """One op. ``records`` holds what each output is, None where it is not linear; ``reason`` then says why.

    ``inputs`` are the operands that the records combine, in order; of an opaque op, all that it reads. ``args`` and ``kwargs`` are
    the call's own, with an `Operand` for each value.
    """

    index: int
    spelling: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    records: tuple[Record | None, ...]
    reason: str | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """Values by number, nodes in the order they run, and the values that something outside the graph reads.

    ``device`` is where its constants live. ``kept`` holds the graph's outputs and whatever a hook or the like looks at.
    ``unread`` holds the nodes that nobody reads, as far as that was asked (`forget_views`).
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    values: list[Operand] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    producers: dict[int, Node] = field(default_factory=dict)
    readers: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    unread: set[int] = field(default_factory=set)
    maps: dict[tuple[int, int, int], Affine] = field(default_factory=dict, repr=False)
    geometries: dict[int, Geometry] = field(default_factory=dict, repr=False)

    def value(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Operand:
        """A new value."""
        operand = Operand(tuple(shape), dtype, len(self.values))
        self.values.append(operand)
        return operand

    def call(
        self,
        spelling: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        outputs: Sequence[Operand],
        reason: str | None = None,
    ) -> Node:
        """Append an op whose arguments hold `Operand`s where they depend on the input; ``reason`` makes it opaque."""
        operands = list(operands_in([args, kwargs]))
        records: tuple[Record | None, ...] = ()
        if reason is None:
            try:
                records = read(spelling, args, kwargs)
                _check_dtypes(spelling, operands, outputs)
                _check_sizes([*operands, *(o for o, record in zip(outputs, records, strict=False) if record)])
                self._check_maps(records, operands)
            except NotLinear as error:
                reason = str(error)
        if reason is not None:
            records = (None,) * len(outputs)
        elif not any(isinstance(record, Sum | Concat) for record in records):
            operands = operands[:1]
        node = Node(
            index=len(self.nodes),
            spelling=spelling,
            inputs=tuple(o.index for o in operands),
            outputs=tuple(o.index for o in outputs),
            records=records,
            reason=reason,
            args=args,
            kwargs=kwargs,
        )
        self.nodes.append(node)
        for output in outputs:
            self.producers[output.index] = node
        for index in set(node.inputs):
            self.readers[index].append(node.index)
        return node

    def forget_views(self, spellings: Collection[str]) -> None:
        """Forget the reads of such nodes whose outputs nobody reads: views that were made only to be written through."""
        for node in reversed(self.nodes):
            read = any(o in self.kept or set(self.readers.get(o, ())) - self.unread for o in node.outputs)
            if node.spelling in spellings and not read:
                self.unread.add(node.index)
        for value, readers in self.readers.items():
            self.readers[value] = [reader for reader in readers if reader not in self.unread]

    def map_of(self, record: Map, channels: int, rank: int = 0) -> Affine:
        """The map of a record over at least ``rank`` spatial axes, worked out once."""
        key = id(record), channels, rank
        if key not in self.maps:
            self.maps[key] = self.map_of(record, channels).lift(rank) if rank else record.affine(channels)
        return self.maps[key]

    def geometry_of(self, node: Node) -> Geometry:
        """The geometry of a node that is a map of its operand."""
        if node.index not in self.geometries:
            record = node.records[0]
            assert isinstance(record, Map)
            channels = _channels(record, self.values[node.inputs[0]].shape)
            self.geometries[node.index] = self.map_of(record, channels).geometry
        return self.geometries[node.index]

    def _check_maps(self, records: Sequence[Record | None], operands: Sequence[Operand]) -> None:
        """A map that is none as it was called says so at once, and is opaque from then on."""
        for record in records:
            if isinstance(record, Map):
                self.map_of(record, _channels(record, operands[0].shape))

    def record_of(self, value: int) -> Record | None:
        """What produced a value, where that is linear."""
        node = self.producers.get(value)
        return None if node is None else node.records[node.outputs.index(value)]


def _channels(record: Map, shape: Sequence[int]) -> int:
    """How many channels a map finds in an operand of this shape."""
    axis = record.axis if record.axis is not None else min(1, len(shape) - 1)
    return shape[axis] if shape else 1


def operands_in(tree: Any) -> Iterator[Operand]:
    """The operands in nested arguments, in order, repeats included."""
    if isinstance(tree, Operand):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from operands_in(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from operands_in(item)


def _check_sizes(values: Iterable[Operand]) -> None:
    for value in values:
        if 0 in value.shape:
            raise NotLinear(f"a value of shape {tuple(value.shape)} holds nothing")


def _check_dtypes(spelling: str, operands: Sequence[Operand], outputs: Sequence[Operand]) -> None:
    dtypes = {operand.dtype for operand in operands} | {outputs[0].dtype}
    if len(dtypes) > 1:
        raise NotLinear(f"{spelling} changes the dtype: {', '.join(sorted(map(str, dtypes)))}")
    if not outputs[0].dtype.is_floating_point:
        raise NotLinear(f"{spelling} of {outputs[0].dtype}")
