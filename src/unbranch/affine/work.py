"""What a convolution costs: one documented scalar."""

from collections.abc import Sequence
from math import prod

from unbranch.affine.geometry import Geometry
from unbranch.affine.value import Affine

ELEMENT = 16.0
"""kappa: the price of moving one element to or from memory, in multiply-adds (calibrated by benchmarks/work.py)."""


def cost(affine: Affine | Geometry, output_size: Sequence[int]) -> float:
    """The *work* of a map for one sample: multiply-adds + kappa * elements read and written.

    ``out * prod(size) * in / groups * prod(kernel) + kappa * (elements in + elements out)``; for a transposed map the product runs
    over input positions. ``output_size`` is spatial.

    Example:
        >>> cost(Affine.identity(8), (10, 10)) == 8 * 100 + ELEMENT * (800 + 800)
        True
    """
    g = affine.geometry if isinstance(affine, Affine) else affine
    written = g.out_channels * prod(output_size)
    steps = prod(g.stride)
    positions = max(1, prod(output_size) // steps) if g.transposed else prod(output_size) * steps
    read = g.in_channels * positions
    macs = multiply_adds(g, output_size)
    return macs + ELEMENT * (read + written)


def multiply_adds(geometry: Geometry, output_size: Sequence[int]) -> float:
    """The multiply-adds of a map for one sample."""
    g = geometry
    taps = g.out_channels * (g.in_channels // g.groups) * prod(g.kernel)
    positions = prod(output_size)
    return float(taps * (positions / prod(g.stride) if g.transposed else positions))
