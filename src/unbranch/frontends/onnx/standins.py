"""Numbers that stand for symbolic dimensions.

A file with symbolic dimensions holds for every size, so nothing may be concluded from one. It is read three times: at a likely size, which
the plan is made for, and at two sets of distinct primes, large and small. What is the same map at all three is a map; what follows from
a parity, a minimum, a maximum or a coincidence is not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

import onnx_ir as ir

BATCHES = (1, 7, 5)
LIKELY_SIZE, LIKELY_STEP = 224, 32


@dataclass(frozen=True)
class StandIns:
    """One number for each symbol; `fresh` makes one for a dimension of which nothing is known."""

    sizes: Mapping[str, int]
    fresh: Callable[[], int]

    def of_input(self, value: ir.Value) -> tuple[int, ...] | None:
        """An input's shape; None where not even its rank is known."""
        names = _dimensions(value)
        return None if names is None else tuple(n if isinstance(n, int) else self.sizes[n] for n in names)

    def declared(self, value: ir.Value) -> tuple[int | None, ...] | None:
        """The shape that the file writes beside a value, None where a dimension is no input's."""
        if value.shape is None:
            return None
        return tuple(d if isinstance(d, int) else self.sizes.get(str(d.value)) for d in value.shape)


def _dimensions(value: ir.Value) -> list[int | str] | None:
    """The value's dimensions; one without a name is called after the value and its axis."""
    if value.shape is None:
        return None
    return [
        d if isinstance(d, int) else str(d.value or f"{value.name}[{axis}]")
        for axis, d in enumerate(value.shape)
    ]


def stand_ins(graph: ir.Graph) -> list[StandIns]:
    """The sets of numbers to read the graph with: one where every dimension is fixed, else three."""
    symbols: dict[str, bool] = {}
    for value in graph.inputs:
        for axis, dimension in enumerate(_dimensions(value) or ()):
            if isinstance(dimension, str):
                symbols[dimension] = symbols.get(dimension, False) or axis == 0
    likely, large, small = _likely(), _primes(1009), _primes(11)
    if not symbols:
        return [StandIns({}, large)]
    return [
        StandIns({s: batch if is_batch else fresh() for s, is_batch in symbols.items()}, fresh)
        for batch, fresh in zip(BATCHES, (likely, large, small), strict=True)
    ]


def _likely() -> Callable[[], int]:
    numbers = count(LIKELY_SIZE, LIKELY_STEP)
    return lambda: next(numbers)


def _primes(first: int) -> Callable[[], int]:
    numbers = (n for n in count(first) if all(n % d for d in range(2, int(n**0.5) + 1)))
    return lambda: next(numbers)
