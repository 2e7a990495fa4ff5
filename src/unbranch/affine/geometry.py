"""Where a convolution samples: the integers of an `Affine`, without its numbers.

Everything that can be decided before a weight is touched is decided here, so a whole network can be planned
in plain integers and only the convolutions that will exist are ever computed.

A plain convolution reads, for output position ``q`` along one axis, the input positions

    q * stride + dilation * tap - before          tap = 0 .. kernel - 1

so its *first sample* is ``-before`` and its *last* is ``dilation * (kernel - 1) - before``. A transposed one writes
``q * stride + dilation * tap - before`` instead. Two kernels are aligned by where they sample, never by their centre.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import gcd
from typing import NamedTuple

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

CACHED = 4096
"""Compositions and sums of geometries that are remembered: a network repeats its blocks."""


class NotLinear(ValueError):
    """This op, or this composition of ops, is not exactly one convolution; the message says why, with the values."""


class Geometry(NamedTuple):
    """The shape of a linear map over channels and 0 to 3 spatial axes; see the module's docstring for what it samples.

    ``padding`` is a (before, after) pair per axis and may be negative (a crop); for a transposed convolution it is what is
    cut from the full output. ``mode`` says what the padding holds. ``biased`` is False only where the bias is exactly zero.
    """

    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    mode: str = "zeros"
    transposed: bool = False
    biased: bool = False

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel)

    @property
    def is_pointwise(self) -> bool:
        """One tap, stride 1, no padding: every output position is a map of the same input position."""
        rank = len(self.kernel)
        return self.is_single_tap and self.stride == (1,) * rank and self.padding == ((0, 0),) * rank

    @property
    def is_single_tap(self) -> bool:
        """A plain 1x1 kernel, strided or padded as it may be."""
        return not self.transposed and self.kernel == (1,) * len(self.kernel)

    @property
    def is_diagonal(self) -> bool:
        """Pointwise with one channel in and one out for each group: a scale and a shift."""
        return self.groups == self.in_channels == self.out_channels and self.is_pointwise

    @property
    def is_padded(self) -> bool:
        """Some side is padded, so samples may fall outside the input (for a transposed one: is cut)."""
        return any(side > 0 for pair in self.padding for side in pair)

    @property
    def is_cropped(self) -> bool:
        """Some side has negative padding."""
        return any(side < 0 for pair in self.padding for side in pair)

    @property
    def reads_border(self) -> bool:
        """What the padding holds can reach the output."""
        return self.is_padded and not self.transposed

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the output for an input of spatial ``size``."""
        out = []
        for n, k, s, d, (before, after) in zip(
            size, self.kernel, self.stride, self.dilation, self.padding, strict=True
        ):
            if self.transposed:
                out.append((n - 1) * s + d * (k - 1) + 1 - before - after)
            else:
                out.append((n + before + after - d * (k - 1) - 1) // s + 1)
        return tuple(out)

    def __str__(self) -> str:
        """A short form for reports, such as ``conv 3x3 64->128 /2 groups 4``."""
        name = "transposed conv" if self.transposed else "conv" if self.rank else "linear"
        kernel = f" {'x'.join(map(str, self.kernel))}" if self.rank else ""
        stride = (
            f" /{'x'.join(map(str, sorted(set(self.stride))))}" if any(s != 1 for s in self.stride) else ""
        )
        groups = f" groups {self.groups}" if self.groups > 1 else ""
        dilation = f" dilation {max(self.dilation)}" if any(d != 1 for d in self.dilation) else ""
        mode = f" {self.mode}" if self.mode != "zeros" else ""
        return f"{name}{kernel} {self.in_channels}->{self.out_channels}{stride}{groups}{dilation}{mode}"


@lru_cache(CACHED)
def identity_geometry(channels: int, rank: int) -> Geometry:
    """The geometry of ``y = x``."""
    return Geometry(
        in_channels=channels,
        out_channels=channels,
        groups=channels,
        kernel=(1,) * rank,
        stride=(1,) * rank,
        padding=((0, 0),) * rank,
        dilation=(1,) * rank,
    )


@lru_cache(CACHED)
def compose_geometry(first: Geometry, second: Geometry) -> Geometry:
    """The geometry of ``second(first(x))``.

    Along each axis: stride s1*s2, samples s1*d2*t2 + d1*t1 - (s1*p2 + p1); the border rule is `_check_border`.

    Raises:
        NotLinear: the two are not one convolution, the border included.
    """
    if first.out_channels != second.in_channels or first.rank != second.rank:
        raise ValueError(f"{second} cannot follow {first}: channels or ranks differ")
    if second.is_diagonal:
        return first if first.biased or not second.biased else first._replace(biased=True)
    groups = composed_groups(first, second)
    biased = first.biased or second.biased
    if first.transposed or second.transposed:
        kept = _kept_by_transposed(first, second)
        return kept._replace(
            in_channels=first.in_channels,
            out_channels=second.out_channels,
            groups=groups,
            biased=biased,
        )
    _check_border(first, second)
    padding = tuple(
        (b1 + s1 * b2, a1 + s1 * a2)
        for (b1, a1), s1, (b2, a2) in zip(first.padding, first.stride, second.padding, strict=True)
    )
    mode = second.mode if second.is_padded else first.mode
    check_wrap(mode, padding)
    kernel, dilation = [], []
    for k1, d1, s1, k2, d2 in zip(
        first.kernel, first.dilation, first.stride, second.kernel, second.dilation, strict=True
    ):
        step = gcd(d1 if k1 > 1 else 0, s1 * d2 if k2 > 1 else 0) or 1
        kernel.append((d1 * (k1 - 1) + s1 * d2 * (k2 - 1)) // step + 1)
        dilation.append(step)
    return Geometry(
        in_channels=first.in_channels,
        out_channels=second.out_channels,
        groups=groups,
        kernel=tuple(kernel),
        stride=tuple(s1 * s2 for s1, s2 in zip(first.stride, second.stride, strict=True)),
        padding=padding,
        dilation=tuple(dilation),
        mode=mode,
        biased=biased,
    )


def composed_groups(first: Geometry, second: Geometry) -> int:
    """The groups of a composition: a map with one input channel a group never merges the other's groups."""
    if second.in_channels == second.groups:
        return first.groups
    if first.in_channels == first.groups == first.out_channels:
        return second.groups
    return gcd(first.groups, second.groups)


def _kept_by_transposed(first: Geometry, second: Geometry) -> Geometry:
    """The one of two whose sampling survives, where the other is pointwise."""
    if first.transposed and second.is_pointwise:
        return first
    if second.transposed and first.is_pointwise:
        if first.biased:
            raise NotLinear(
                f"{second} after a bias: how many taps reach an output varies, so the bias is no constant"
            )
        return second
    raise NotLinear(f"{second} after {first}: a transposed convolution composes with pointwise maps only")


def _check_border(first: Geometry, second: Geometry) -> None:
    """Refuse a padded ``second`` unless what it pads with is what ``first`` makes of its own padding."""
    if not second.is_padded:
        return
    if second.mode != "zeros":
        if not first.is_pointwise:
            raise NotLinear(
                f"{second.mode} padding of {second.padding} after {first}, which is not pointwise"
            )
        return
    if not first.is_single_tap:
        raise NotLinear(
            f"zero padding {second.padding} of {second} after {first}: there the padding is 0, and {first} would compute a value"
        )
    if first.biased:
        raise NotLinear(
            f"zero padding {second.padding} of {second} after a bias: the border is 0 and not the bias"
        )
    if first.is_cropped or (first.reads_border and first.mode != "zeros"):
        raise NotLinear(
            f"zero padding {second.padding} of {second} after {first} with padding {first.padding}"
        )


def check_wrap(mode: str, padding: Sequence[tuple[int, int]]) -> None:
    """Refuse to wrap around what is cropped: torch crops first, so the other end would supply other entries.

    Raises:
        NotLinear: circular padding with a negative side opposite a positive one.
    """
    if mode == "circular" and any(min(pair) < 0 < max(pair) for pair in padding):
        raise NotLinear(f"circular padding {tuple(padding)} that wraps around a cropped end")


def add_geometry(parts: Sequence[Geometry], *, stacked: bool = False) -> Geometry:
    """The geometry of ``sum(part(x))``, or of the parts' outputs stacked along channels: the smallest common lattice.

    Raises:
        NotLinear: strides, sizes or borders differ, or a transposed one meets a plain one.
    """
    return _added_geometry(tuple(parts), stacked)


@lru_cache(CACHED)
def _added_geometry(parts: tuple[Geometry, ...], stacked: bool) -> Geometry:
    head = parts[0]
    for part in parts[1:]:
        if part.in_channels != head.in_channels or part.rank != head.rank:
            raise ValueError(f"{part} and {head} do not read the same value")
        if not stacked and part.out_channels != head.out_channels:
            raise NotLinear(f"a sum that broadcasts {part.out_channels} channels with {head.out_channels}")
        if part.stride != head.stride or part.transposed != head.transposed:
            raise NotLinear(f"strides differ: {head} and {part}")
    kernel, padding, dilation = [], [], []
    for axis in range(head.rank):
        k, pad, d = _common_lattice(parts, axis)
        kernel.append(k)
        padding.append(pad)
        dilation.append(d)
    groups = gcd(*(part.groups for part in parts))
    return head._replace(
        out_channels=sum(part.out_channels for part in parts) if stacked else head.out_channels,
        groups=1 if stacked else groups,
        kernel=tuple(kernel),
        padding=tuple(padding),
        dilation=tuple(dilation),
        mode=_common_mode(parts),
        biased=any(part.biased for part in parts),
    )


def _common_mode(parts: Iterable[Geometry]) -> str:
    modes = {part.mode for part in parts if part.reads_border}
    if len(modes) > 1:
        raise NotLinear(f"branches with different padding modes read the border: {', '.join(sorted(modes))}")
    return modes.pop() if modes else "zeros"


def _common_lattice(parts: Sequence[Geometry], axis: int) -> tuple[int, tuple[int, int], int]:
    """Kernel, padding and dilation along ``axis`` that hold every part's samples."""
    spans = [(p.kernel[axis], p.dilation[axis], *p.padding[axis]) for p in parts]
    slacks = {before + after - d * (k - 1) for k, d, before, after in spans}
    if len(slacks) > 1:
        raise NotLinear(f"output sizes differ along axis {axis}: {', '.join(str(p) for p in parts)}")
    first = min(-before for _, _, before, _ in spans)
    last = max(d * (k - 1) - before for k, d, before, _ in spans)
    steps = [d for k, d, _, _ in spans if k > 1] + [-before - first for _, _, before, _ in spans]
    step = gcd(*steps) or 1
    kernel = (last - first) // step + 1
    return kernel, (-first, slacks.pop() + last), step


def taps_within(part: Geometry, whole: Geometry) -> tuple[slice, ...]:
    """Where ``part``'s taps lie in ``whole``'s kernel, one slice per axis."""
    slices = []
    for k, d, (before, _), step, (start, _) in zip(
        part.kernel, part.dilation, part.padding, whole.dilation, whole.padding, strict=True
    ):
        at = (start - before) // step
        stride = d // step if k > 1 else 1
        slices.append(slice(at, at + stride * (k - 1) + 1, stride))
    return tuple(slices)
