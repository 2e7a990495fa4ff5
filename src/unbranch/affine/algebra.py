"""The algebra of `Affine`: chains compose, sums add, concatenations stack, slices select.

Every function is differentiable, works in any dtype and on any device, and is exact or raises `NotLinear`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from unbranch.affine.geometry import (
    Geometry,
    NotLinear,
    add_geometry,
    compose_geometry,
    taps_within,
)
from unbranch.affine.value import Affine


def compose(first: Affine, second: Affine) -> Affine:
    """``second(first(x))`` as one map: ``W[t1 + t2] = sum W2[t2] @ W1[t1]``, ``b = b2 + sum_t W2[t] b1``.

    Raises:
        NotLinear: it is not one convolution. The border is the trap: a padded second kernel after a bias, or after a
            spatial kernel, reads zeros where the chain would have computed something.

    Example:
        >>> eye = Affine.identity(4)
        >>> compose(eye, Affine(torch.ones(1, 8, 4, 3, 3, dtype=torch.float64), None, (2, 2), ((1, 1), (1, 1)), (1, 1))).weight.shape
        torch.Size([1, 8, 4, 3, 3])
    """
    geometry = compose_geometry(first.geometry, second.geometry)
    bias = _bias_behind(first, second)
    if second.geometry.is_diagonal:
        weight = first.weight * second.weight.reshape(first.groups, -1, 1, *(1,) * first.rank)
        return Affine.of(geometry, weight, bias)
    if first.geometry.is_diagonal:
        weight = second.weight * first.weight.reshape(second.groups, 1, -1, *(1,) * second.rank)
        return Affine.of(geometry, weight, bias)
    return Affine.of(geometry, _composed_weight(first, second, geometry), bias)


def _bias_behind(first: Affine, second: Affine) -> Tensor | None:
    """The bias of ``second(first(x))``."""
    return second.bias if first.bias is None else _carried_bias(first.bias, second)


def _carried_bias(bias: Tensor, second: Affine) -> Tensor:
    """What a constant ``bias`` on every input channel becomes behind ``second``, its own bias included."""
    if second.geometry.is_diagonal:
        carried = bias * second.weight.flatten()
        return carried if second.bias is None else carried + second.bias
    summed = second.weight.flatten(3).sum(-1) if second.rank else second.weight
    carried = torch.einsum("goi,gi->go", summed, bias.reshape(second.groups, -1)).flatten()
    return carried if second.bias is None else carried + second.bias


def _composed_weight(first: Affine, second: Affine, geometry: Geometry) -> Tensor:
    """Accumulate, tap by tap of the smaller kernel, the products of the two kernels on the common lattice."""
    multiply = _channel_product(first, second)
    weight = _zeros_like(geometry, first.weight)
    for tap in product(*(range(k) for k in second.kernel)):
        at = []
        for t, k1, d1, s1, d2, step in zip(
            tap, first.kernel, first.dilation, first.stride, second.dilation, geometry.dilation, strict=True
        ):
            start = s1 * d2 * t // step
            jump = d1 // step if k1 > 1 else 1
            at.append(slice(start, start + jump * (k1 - 1) + 1, jump))
        if first.transposed or second.transposed:
            at = [slice(t, t + k) for t, k in zip(tap, first.kernel, strict=True)]
        weight[(..., *at)] += multiply(second.weight[(..., *tap)])
    return weight


def _channel_product(first: Affine, second: Affine):
    """The function from one tap of the second kernel, (g2, o, m), to its product with the whole first kernel."""
    rank = first.rank
    if second.in_channels == second.groups:
        rows = first.weight.flatten(0, 1).repeat_interleave(second.out_channels // second.groups, dim=0)
        rows = rows.unflatten(0, (first.groups, -1))
        return lambda tap: rows * tap.reshape(first.groups, -1, 1, *(1,) * rank)
    if first.in_channels == first.groups == first.out_channels:
        columns = first.weight.reshape(second.groups, 1, -1, *first.kernel)
        return lambda tap: columns * tap[(...,) + (None,) * rank]
    groups = compose_geometry(first.geometry, second.geometry).groups
    wide = regroup(first, groups).weight
    flat = wide.flatten(2)

    def multiply(tap: Tensor) -> Tensor:
        joined = _regroup_weight(tap, groups)
        return torch.bmm(joined, flat).reshape(groups, joined.shape[1], *wide.shape[2:])

    return multiply


def add(*parts: Affine) -> Affine:
    """``sum(part(x))`` as one map: kernels aligned by where they sample, groups brought to their gcd.

    Raises:
        NotLinear: strides, output sizes or padding modes differ, or a transposed map meets a plain one.
    """
    return add_up(add_geometry([part.geometry for part in parts]), ((part, None) for part in parts))


def add_up(geometry: Geometry, terms: Iterable[tuple[Affine, Affine | None]]) -> Affine:
    """``sum(last(part(x)))`` for the pairs (part, last), with the geometry known: they may come one by one, and none is held for long.

    ``last`` is a diagonal map or None; its product with the part is taken up by the sum and never written down.
    """
    total: Tensor | None = None
    bias: Tensor | None = None
    for part, last in terms:
        if total is None:
            total = _zeros_like(geometry, part.weight if last is None else last.weight)
        _take_up(total, geometry, part, last)
        constant = part.bias if last is None else _bias_behind(part, last)
        if constant is not None:
            bias = constant if bias is None else bias + constant
    if total is None:
        raise ValueError("a sum of nothing")
    return Affine.of(geometry, total, bias)


def _take_up(total: Tensor, geometry: Geometry, part: Affine, last: Affine | None) -> None:
    """``total += last(part)``, where its taps lie and its groups stand."""
    if part.kernel != geometry.kernel:
        total = total[(..., *taps_within(part.geometry, geometry))]
    weight = part.weight
    scale = None if last is None else last.weight.reshape(part.groups, -1, 1, *(1,) * part.rank)
    if part.groups != geometry.groups:
        total, split = _diagonal_blocks(total, part.groups), (geometry.groups, -1)
        weight = weight.unflatten(0, split)
        scale = None if scale is None else scale.unflatten(0, split)
    if scale is None:
        total.add_(weight)
    else:
        total.addcmul_(weight.to(total.dtype), scale.to(total.dtype))


def _zeros_like(geometry: Geometry, weight: Tensor) -> Tensor:
    """A weight of the geometry's shape, all zeros, of the kind that ``weight`` is."""
    g = geometry
    return weight.new_zeros((g.groups, g.out_channels // g.groups, g.in_channels // g.groups, *g.kernel))


def concat(*parts: Affine) -> Affine:
    """The parts' outputs, stacked along channels, as one map of the value they all read.

    Raises:
        NotLinear: as `add`.
    """
    geometry = add_geometry([part.geometry for part in parts], stacked=True)
    rows = []
    for part in parts:
        wide = regroup(part, 1).weight
        row = wide.new_zeros((1, part.out_channels, part.in_channels, *geometry.kernel))
        row[(..., *taps_within(part.geometry, geometry))] = wide
        rows.append(row)
    bias = None
    if geometry.biased:
        zeros = [p.weight.new_zeros(p.out_channels) if p.bias is None else p.bias for p in parts]
        bias = torch.cat(zeros)
    return Affine.of(geometry, torch.cat(rows, dim=1), bias)


def select(affine: Affine, channels: Sequence[int]) -> Affine:
    """The output channels ``channels``, in that order (slices, chunks, shuffles): ``W[channels], b[channels]``.

    Raises:
        ValueError: there is no such channel.
    """
    groups = select_groups(affine.geometry, channels)
    wide = regroup(affine, groups)
    index = torch.as_tensor(channels, device=affine.weight.device)
    weight = wide.weight.flatten(0, 1)[index].unflatten(0, (groups, -1))
    bias = None if affine.bias is None else affine.bias[index]
    return Affine(
        weight, bias, affine.stride, affine.padding, affine.dilation, affine.mode, affine.transposed
    )


def select_groups(geometry: Geometry, channels: Sequence[int]) -> int:
    """The most groups that a selection of output channels can keep."""
    if any(not 0 <= c < geometry.out_channels for c in channels):
        raise ValueError(f"channels {channels} of a value with {geometry.out_channels}")
    for groups in range(geometry.groups, 0, -1):
        if geometry.groups % groups or len(channels) % groups:
            continue
        rows, chunk = geometry.out_channels // groups, len(channels) // groups
        if all(c // rows == i // chunk for i, c in enumerate(channels)):
            return groups
    return 1


def select_geometry(geometry: Geometry, channels: Sequence[int]) -> Geometry:
    """The geometry of `select`."""
    return geometry._replace(out_channels=len(channels), groups=select_groups(geometry, channels))


def scale(affine: Affine, factor: float | Float[Tensor, " channels"]) -> Affine:
    """``factor * y``: a number, or one for each output channel."""
    if not isinstance(factor, Tensor):
        factor = affine.weight.new_full((affine.out_channels,), factor)
    return compose(affine, Affine.diagonal(factor.to(affine.weight), None, affine.rank))


def shift(affine: Affine, offset: float | Float[Tensor, " channels"]) -> Affine:
    """``y + offset``: a number, or one for each output channel."""
    if not isinstance(offset, Tensor):
        offset = affine.weight.new_full((affine.out_channels,), offset)
    offset = offset.to(affine.weight)
    return replace(affine, bias=offset if affine.bias is None else affine.bias + offset)


def regroup(affine: Affine, groups: int) -> Affine:
    """The same map written with fewer groups: block-diagonal, zeros elsewhere.

    Raises:
        ValueError: ``groups`` does not divide the map's groups.
    """
    return replace(affine, weight=_regroup_weight(affine.weight, groups))


def _regroup_weight(weight: Tensor, groups: int) -> Tensor:
    if weight.shape[0] == groups:
        return weight
    if weight.shape[0] % groups:
        raise ValueError(f"{weight.shape[0]} groups cannot become {groups}")
    merged = weight.shape[0] // groups
    out, into = weight.shape[1:3]
    wide = weight.new_zeros((groups, merged * out, merged * into, *weight.shape[3:]))
    _diagonal_blocks(wide, weight.shape[0]).copy_(weight.unflatten(0, (groups, merged)))
    return wide


def _diagonal_blocks(weight: Tensor, groups: int) -> Tensor:
    """Where a map of more groups stands in a weight of fewer: a view, (fewer, groups / fewer, out / groups, in / groups, *k)."""
    merged = groups // weight.shape[0]
    blocks = weight.unflatten(1, (merged, -1)).unflatten(3, (merged, -1))
    return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)


__all__ = [
    "NotLinear",
    "add",
    "add_up",
    "compose",
    "concat",
    "regroup",
    "scale",
    "select",
    "select_geometry",
    "shift",
]
