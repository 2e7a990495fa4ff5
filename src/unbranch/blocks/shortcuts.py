"""The branch that carries the input past the kernel, for any channels and any stride."""

from collections import OrderedDict
from collections.abc import Callable
from math import prod
from typing import TypeAlias, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks.spec import ConvSpec, pad_layer

ChannelMap: TypeAlias = Float[Tensor, "c_out c_in"]


def average_channels(c_in: int, c_out: int) -> ChannelMap:
    """m[o, i] = c_out / c_in * |[i, i + 1] ∩ [o, o + 1] * c_in / c_out|: the mean over o's share.

    >>> average_channels(4, 2).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    edges_in = torch.arange(c_in + 1, dtype=torch.float64) * c_out
    edges_out = torch.arange(c_out + 1, dtype=torch.float64) * c_in
    upper = torch.minimum(edges_in[None, 1:], edges_out[1:, None])
    lower = torch.maximum(edges_in[None, :-1], edges_out[:-1, None])
    return (upper - lower).clamp_min(0) / c_in


def select_channels(c_in: int, c_out: int) -> ChannelMap:
    """m[o, i] = 1 where i = floor((o + 1/2) * c_in / c_out): the nearest channel.

    >>> select_channels(4, 2).tolist()
    [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    nearest = (2 * torch.arange(c_out) + 1) * c_in // (2 * c_out)
    return nn.functional.one_hot(nearest, c_in).double()


def interpolate_channels(c_in: int, c_out: int) -> ChannelMap:
    """m[o, :] interpolates linearly between channel centres at (o + 1/2) * c_in / c_out - 1/2, ends held.

    >>> interpolate_channels(2, 4)[:, 1].tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    position = ((torch.arange(c_out, dtype=torch.float64) + 0.5) * c_in / c_out - 0.5).clamp(0, c_in - 1)
    distance = (position[:, None] - torch.arange(c_in, dtype=torch.float64)).abs()
    return (1 - distance).clamp_min(0)


CHANNEL_MAPS: dict[str, Callable[[int, int], ChannelMap]] = {
    "average": average_channels,
    "select": select_channels,
    "linear": interpolate_channels,
}


class FixedConv(nn.Module):
    """A convolution whose weight is a constant: moved and cast with the module, neither trained nor saved."""

    weight: Tensor

    def __init__(
        self, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...], groups: int
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(torch.get_default_dtype()), persistent=False)
        self.stride = stride
        self.dilation = dilation
        self.groups = groups

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c_in *size"]) -> Float[Tensor, "n c_out *out"]:
        """Convolve."""
        convolve = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[self.weight.ndim - 3]
        return convolve(x, self.weight, None, self.stride, 0, self.dilation, self.groups)


def resample(kind: str, spec: ConvSpec) -> OrderedDict[str, nn.Module]:
    """``{"pad"?, "resample"}``: the mean of the s^dims taps from the centre on, channels mapped by group.

    A stride s on an axis reads the pixels ``s * o + dilation * j``, 0 <= j < s, from where the kernel's centre tap is, of which the
    last ones may lie in the border that the kernel also sees. Raises ValueError where the kernel has fewer than s taps from
    its centre on.
    """
    room = tuple(k - (k - 1) // 2 for k in spec.kernel)
    if any(step > taps for step, taps in zip(spec.stride, room, strict=True)):
        raise ValueError(
            f"shortcut={kind!r} averages {spec.stride} taps from the kernel's centre on, "
            f"a kernel of {spec.kernel} holds {room}: use a larger kernel, or 'conv', or None"
        )
    channels = CHANNEL_MAPS[kind](spec.in_channels // spec.groups, spec.out_channels // spec.groups)
    taps = prod(spec.stride)
    weight = channels.reshape(*channels.shape, *(1,) * spec.dims).expand(*channels.shape, *spec.stride) / taps
    axes = zip(spec.stride, spec.dilation, spec.extra, strict=True)
    padding = tuple((first, last + d * (s - 1)) for s, d, (first, last) in axes)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if any(map(any, padding)):
        layers["pad"] = pad_layer(spec.padding_mode, padding)
    weight = weight.repeat(spec.groups, *(1,) * (weight.ndim - 1))
    layers["resample"] = FixedConv(weight, spec.stride, spec.dilation, spec.groups)
    return layers


def shortcut_branch(kind: str | None, spec: ConvSpec) -> nn.Module | None:
    """The branch, its norm included, or None where there is none.

    ``"auto"`` is ``"identity"`` where channels stay and the stride is 1, else None. ``"identity"`` is the input itself,
    padded or cropped to where the kernel's centre reads it, ``"conv"`` a 1x1 convolution, ``"average"``, ``"select"`` and
    ``"linear"`` fixed maps across channels (``CHANNEL_MAPS``). Raises ValueError for an identity that changes channels or
    strides, a kernel too small for its stride, an unknown name.
    """
    if kind is None or (kind == "auto" and not spec.carries_input):
        return None
    if kind in ("auto", "identity"):
        if not spec.carries_input:
            raise ValueError(
                f"shortcut='identity' needs as many channels out as in and stride 1, got "
                f"{spec.in_channels} -> {spec.out_channels} channels and stride {spec.stride}: "
                f"use 'conv', {', '.join(map(repr, CHANNEL_MAPS))} or None"
            )
        return spec.carried_norm()
    if kind == "conv":
        return spec.conv_norm(1)
    if kind not in CHANNEL_MAPS:
        raise ValueError(
            f"shortcut={kind!r} is none of auto, identity, conv, {', '.join(CHANNEL_MAPS)} and None"
        )
    return nn.Sequential(OrderedDict(resample(kind, spec), norm=spec.norm(spec.out_channels)))
