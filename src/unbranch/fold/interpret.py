"""One walk over the graph: for each value, every earlier value of which it is an affine map.

There are no patterns. Chains compose, sums add, concatenations stack, slices select; what cannot is a fresh start, and the reason is
kept. Only geometry is computed here: the numbers of a map are worked out when a convolution is made of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

import torch

from unbranch.affine import (
    Affine,
    Geometry,
    NotLinear,
    add_geometry,
    compose_geometry,
    select_geometry,
)
from unbranch.fold.border import Border, per_channel
from unbranch.fold.facts import (
    Composing,
    Fact,
    Rule,
    identity_fact,
    padding_with_bias,
    selecting,
    stacking,
    summed,
    unchanged,
)
from unbranch.fold.graph import Graph, Node
from unbranch.fold.layout import Layout
from unbranch.ops import Concat, Identity, Map, Pad, Permute, Record, Reshape, Slice, Sum, Take, Write

MOST_SOURCES = 24
"""How far back a value is followed, in sources; longer linear chains fold piece by piece."""

MOST_AXES = 3
"""Convolutions run over at most so many spatial axes."""

MOST_TAPS = 4096
"""Kernels larger than this are not considered."""


@dataclass
class Interpretation:
    """The facts of each value, nearest source first, and why a node could not join what came before it."""

    graph: Graph
    facts: dict[int, list[Fact]] = field(default_factory=dict)
    refusals: dict[int, str] = field(default_factory=dict)
    starts: dict[tuple[int, int], Fact] = field(default_factory=dict, repr=False)

    def start(self, value: int, axis: int) -> Fact:
        """The value as a map of itself."""
        if (value, axis) not in self.starts:
            self.starts[value, axis] = identity_fact(value, self.graph.values[value].shape, axis)
        return self.starts[value, axis]

    def of(self, value: int, source: int) -> list[Fact]:
        """The facts that make ``value`` a map of ``source``."""
        return [fact for fact in self.facts.get(value, ()) if fact.source == source]


def interpret(graph: Graph) -> Interpretation:
    """The facts of every value in the graph."""
    result = Interpretation(graph)
    for node in graph.nodes:
        for output, record in zip(node.outputs, node.records, strict=False):
            if record is not None:
                result.facts[output] = _facts_of(result, node, output, record)
    return result


def _facts_of(known: Interpretation, node: Node, output: int, record: Record) -> list[Fact]:
    """Every fact that ``record`` gives ``output``."""
    facts: list[Fact] = []
    for inputs in _matching_inputs(known, node, record):
        try:
            fact = _apply(known.graph, record, inputs, node, output)
        except NotLinear as error:
            known.refusals[node.index] = str(error)
            continue
        if _taps(fact.geometry) <= MOST_TAPS:
            facts.append(fact)
    if len(facts) > 1:
        facts.sort(key=lambda fact: len(fact.members))
    return facts[:MOST_SOURCES]


def _matching_inputs(known: Interpretation, node: Node, record: Record) -> Iterable[list[Fact]]:
    """For each source that all operands share, their facts; an operand is also a map of itself."""
    if len(set(node.inputs)) == 1:
        head = [*_starts(known, record, node.inputs[0]), *known.facts.get(node.inputs[0], ())]
        return [[fact] * len(node.inputs) for fact in head]
    tables = [{fact.key: fact for fact in known.facts.get(index, ())} for index in node.inputs]
    keys = {key for table in tables for key in table}
    for position, index in enumerate(node.inputs):
        starts = {key: known.start(*key) for key in sorted(keys) if key[0] == index}
        tables[position] = starts | tables[position]
    return [[table[key] for table in tables] for key in tables[0] if all(key in table for table in tables)]


def _starts(known: Interpretation, record: Record, value: int) -> list[Fact]:
    """The value as a map of itself, by each axis where the op may find its channels."""
    shape = known.graph.values[value].shape
    return [known.start(value, axis) for axis in _channel_axes(record, len(shape)) if _can_start(shape, axis)]


def _channel_axes(record: Record, ndim: int) -> Sequence[int]:
    """Where a fresh start may take its channels from: axis 1, or the last."""
    axis = record.axis if isinstance(record, Map) else None
    last = ndim - 1
    if ndim < 2:
        return ()
    if axis is None:
        return (1,) if last == 1 else (1, last)
    axis %= ndim
    return (axis,) if axis in (1, last) else ()


def _can_start(shape: Sequence[int], axis: int) -> bool:
    """A value with a batch and a channel axis, and beside channels in the second place at most three others."""
    return len(shape) >= 2 and (axis != 1 or len(shape) <= 2 + MOST_AXES)


def _taps(geometry: Geometry) -> int:
    return prod(geometry.kernel)


class _Step(NamedTuple):
    """What an op makes of the map before it; the rest of a `Fact` follows from where the op stands."""

    geometry: Geometry
    parts: tuple[Fact, ...]
    rule: Rule | None = unchanged
    layout: Layout | None = None
    border: Border | None = None
    past: Border | None = None
    terms: tuple[Fact, ...] | None = None


def _apply(graph: Graph, record: Record, inputs: list[Fact], node: Node, output: int) -> Fact:
    """The fact of ``output`` from its operands' facts."""
    head, value = inputs[0], graph.values[node.inputs[0]]
    match record:
        case Map():
            step = _mapped(graph, head, record, value.ndim)
        case Identity():
            step = _passed(head)
        case Sum():
            step = _summed(inputs, record)
        case Concat():
            step = _joined(inputs, record.axis)
        case Slice() | Take():
            step = _taken(head, record, value.shape)
        case Reshape() | Permute():
            step = _moved(head, record, value.shape)
        case Pad():
            step = _padded(graph, head, record, value.shape)
        case Write():
            step = _written(graph, head, record, value.shape)
        case _:
            raise TypeError(f"no rule for {type(record).__name__}")
    pending = head.pending if step.layout is not None else ()
    if step.layout is not None and isinstance(record, Reshape | Permute):
        pending = (*pending, node.index)
    return Fact(
        value=output,
        source=head.source,
        axis=head.axis,
        geometry=step.geometry,
        shape=graph.values[output].shape,
        members=frozenset((node.index,)).union(*[fact.members for fact in inputs]),
        pending=pending,
        layout=step.layout,
        border=step.border,
        past=step.past,
        parts=step.parts,
        rule=step.rule,
        terms=step.terms,
    )


def _plain(fact: Fact, what: str) -> Fact:
    if fact.border is not None:
        raise NotLinear(f"{what} of a value whose border is not what the map before it makes of zeros")
    if fact.layout is not None:
        raise NotLinear(f"{what} of a value whose elements stand in another arrangement")
    return fact


def _passed(fact: Fact) -> _Step:
    """The value as it is; a border that is being written keeps the map that it stands around."""
    if fact.border is not None:
        return _Step(fact.geometry, fact.parts, fact.rule, fact.layout, fact.border)
    return _Step(fact.geometry, (fact,), layout=fact.layout)


def _mapped(graph: Graph, fact: Fact, record: Map, ndim: int) -> _Step:
    """Compose, if the op's channel axis is the map's."""
    if fact.border is not None:
        raise NotLinear("a border that is not what the map before it makes of zeros")
    here = fact.axis if fact.layout is None else fact.layout.position_of(fact.axis)
    wanted = here if record.axis is None else record.axis % ndim
    if record.axis is not None and (here is None or here != wanted):
        raise NotLinear(f"its channel axis is {wanted}, the value's is {here}")
    second = graph.map_of(record, fact.geometry.out_channels, fact.geometry.rank)
    if second.in_channels != fact.geometry.out_channels:
        raise NotLinear(f"{second.geometry} on a value with {fact.geometry.out_channels} channels")
    if second.rank != fact.geometry.rank:
        raise NotLinear(f"{second.geometry} on a value with {fact.geometry.rank} spatial axes")
    layout = _after(graph, fact, second.geometry)
    geometry = compose_geometry(fact.geometry, second.geometry)
    if not fact.is_start:
        return _Step(geometry, (fact,), Composing(second), layout)

    def alone(_: Iterable[Affine]) -> Affine:
        here = second.to(graph.device)
        return here if here.geometry == geometry else Affine.of(geometry, here.weight, here.bias)

    return _Step(geometry, (fact,), alone, layout, terms=())


def _after(graph: Graph, fact: Fact, second: Geometry) -> Layout | None:
    """The arrangement behind ``second``: another number of channels passes axes that were swapped, but no reshape that counts them."""
    if fact.layout is None:
        return None
    same = second.in_channels == second.out_channels
    swapped = all(isinstance(graph.nodes[i].records[0], Permute) for i in fact.pending)
    if not second.is_pointwise or not (same or swapped):
        raise NotLinear(f"{second} on a value whose elements stand in another arrangement")
    return fact.layout if same else fact.layout.resized(fact.axis, second.out_channels)


def _summed(inputs: list[Fact], record: Sum) -> _Step:
    head = inputs[0]
    if any(fact.layout != head.layout or fact.border is not None for fact in inputs):
        raise NotLinear("a sum of values in different arrangements")
    if head.layout is not None:
        raise NotLinear("a sum of values whose elements stand in another arrangement")
    terms, rule = summed(inputs, record.factors)
    return _Step(rule.geometry, tuple(inputs), rule, terms=terms)


def _joined(inputs: list[Fact], axis: int) -> _Step:
    for fact in inputs:
        _plain(fact, "a concatenation")
    if axis != inputs[0].axis:
        raise NotLinear(f"a concatenation along axis {axis}, which does not hold the channels")
    geometry = add_geometry([fact.geometry for fact in inputs], stacked=True)
    return _Step(geometry, tuple(inputs), stacking)


def _taken(fact: Fact, record: Slice | Take, shape: tuple[int, ...]) -> _Step:
    """Channels are selected; spatial axes are cropped and strided."""
    if isinstance(record, Slice) and record == Slice(record.axis, 0, None):
        return _Step(fact.geometry, (fact,), layout=fact.layout, border=fact.border)
    _plain(fact, "a slice")
    if record.axis == fact.axis:
        channels = (
            record.indices if isinstance(record, Take) else tuple(range(shape[record.axis])[_slice(record)])
        )
        geometry = select_geometry(fact.geometry, channels)
        return _Step(geometry, (fact,), selecting(channels))
    if isinstance(record, Take) or fact.axis != 1 or record.axis < 2:
        raise NotLinear(f"a choice along axis {record.axis}, which does not hold the channels")
    crop = _crop(fact.geometry, record)
    return _Step(compose_geometry(fact.geometry, crop.geometry), (fact,), Composing(crop))


def _slice(record: Slice) -> slice:
    return slice(record.start, record.stop, record.step)


def _crop(geometry: Geometry, record: Slice) -> Affine:
    """A spatial slice as an identity with negative padding and a stride."""
    if record.start < 0 or (record.stop is not None and record.stop >= 0):
        raise NotLinear(f"a slice [{record.start}:{record.stop}] whose meaning depends on the size")
    axis = record.axis - 2
    eye = Affine.identity(geometry.out_channels, geometry.rank)
    padding, stride = list(eye.padding), list(eye.stride)
    padding[axis], stride[axis] = (-record.start, record.stop or 0), record.step
    return replace(eye, padding=tuple(padding), stride=tuple(stride))


def _moved(fact: Fact, record: Reshape | Permute, shape: tuple[int, ...]) -> _Step:
    """Follow the elements; back in their original places, possibly with channels permuted, the value is plain again."""
    before = Layout.original(shape) if fact.layout is None else fact.layout
    layout = before.reshape(record.shape) if isinstance(record, Reshape) else before.permute(record.axes)
    if fact.border is not None:
        if isinstance(record, Reshape) and layout != before:
            raise NotLinear("a reshape of a value with an unfinished border")
        layout = None if layout.is_original else layout
        return _Step(fact.geometry, fact.parts, fact.rule, layout, fact.border)
    if layout.is_original:
        return _Step(fact.geometry, (fact,))
    order = layout.permutation_of(fact.axis)
    if order is not None:
        geometry = select_geometry(fact.geometry, order)
        return _Step(geometry, (fact,), selecting(order))
    return _Step(fact.geometry, (fact,), layout=layout)


def _padded(graph: Graph, fact: Fact, record: Pad, shape: tuple[int, ...]) -> _Step:
    """A zero pad composes where it may; any other begins a border."""
    _plain(fact, "a pad")
    if fact.axis != 1 or any(side for pair in record.pads[:2] for side in pair):
        raise NotLinear(f"padding {record.pads} of an axis that is not spatial")
    pads = record.pads[2:]
    eye = replace(Affine.identity(fact.geometry.out_channels, fact.geometry.rank), padding=pads)
    if isinstance(record.value, torch.Tensor):
        value = per_channel(record.value, shape, fact.axis)
    else:
        value = torch.full((fact.geometry.out_channels,), record.value, dtype=torch.float64)
    cropped = all(side <= 0 for pair in pads for side in pair)
    if cropped or (not value.any() and not fact.geometry.biased):
        geometry = compose_geometry(fact.geometry, eye.geometry)
        crops = any(side < 0 for pair in pads for side in pair)
        past = None if crops else Border.filled(pads, value)
        return _Step(geometry, (fact,), Composing(eye), past=past)
    if any(side < 0 for pair in pads for side in pair):
        raise NotLinear(f"padding {pads}, which crops and fills")
    return _closed(graph, fact, Border.filled(pads, value))


def _written(graph: Graph, fact: Fact, record: Write, shape: tuple[int, ...]) -> _Step:
    """One more slab of a border."""
    known = fact.border or fact.past
    if known is None:
        raise NotLinear("a write into a value that has no border")
    layout = fact.layout or Layout.original(shape)
    axis = layout.origin_of(record.axis)
    if axis is None or axis < 2:
        raise NotLinear(f"a write along axis {record.axis}, which is not spatial")
    value = per_channel(record.value, shape, layout.index_of(fact.axis))
    border = known.write(axis - 2, record.start, record.stop, shape[record.axis], value)
    return _closed(graph, fact.parts[0], border, fact.layout)


def _closed(graph: Graph, inner: Fact, border: Border, layout: Layout | None = None) -> _Step:
    """The border as padding, once every cell of it holds what the inner map makes of zeros."""
    if not inner.geometry.is_single_tap:
        raise NotLinear(
            f"a constant border {border.pads} around {inner.geometry}, whose own padding is not constant"
        )
    bias = inner.evaluate(graph.device).bias
    if bias is None:
        bias = torch.zeros(inner.geometry.out_channels, dtype=torch.float64, device=graph.device)
    if not border.holds(bias):
        return _Step(inner.geometry, (inner,), layout=layout, border=border)
    eye = replace(Affine.identity(inner.geometry.out_channels, inner.geometry.rank), padding=border.pads)
    unbiased = compose_geometry(inner.geometry._replace(biased=False), eye.geometry)
    geometry = unbiased._replace(biased=inner.geometry.biased)
    return _Step(geometry, (inner,), padding_with_bias(eye), layout, past=border)
