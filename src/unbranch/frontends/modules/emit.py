"""Write an affine map as the layers that torch has for it."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.affine import Affine, Geometry, NotLinear
from unbranch.ops.batch_norm import FoldedNorm

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_PADS = {
    "zeros": {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d},
    "reflect": {1: nn.ReflectionPad1d, 2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d},
    "replicate": {1: nn.ReplicationPad1d, 2: nn.ReplicationPad2d, 3: nn.ReplicationPad3d},
    "circular": {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d},
}
_LAST = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


def native_padding(geometry: Geometry) -> tuple[int, ...] | str | None:
    """The ``padding`` argument with which torch's layer pads so itself; None where it cannot.

    A layer pads both sides alike, or, with ``"same"``, an odd total with one more at the end.
    """
    g = geometry
    if all(before == after >= 0 for before, after in g.padding):
        return tuple(before for before, _ in g.padding)
    spare = [d * (k - 1) for d, k in zip(g.dilation, g.kernel, strict=True)]
    same = tuple((n // 2, n - n // 2) for n in spare)
    return "same" if g.padding == same and all(s == 1 for s in g.stride) else None


def output_padding(geometry: Geometry) -> tuple[int, ...]:
    """What a transposed layer must add at the end.

    Raises:
        NotLinear: torch's layer cannot write that size.
    """
    g = geometry
    extra = tuple(before - after for before, after in g.padding)
    if any(b < 0 for b, _ in g.padding) or any(
        not 0 <= e < max(s, d) for e, s, d in zip(extra, g.stride, g.dilation, strict=True)
    ):
        raise NotLinear(f"a transposed convolution that cuts {g.padding} is no layer of torch's")
    return extra


def check_emittable(geometry: Geometry, linear: bool) -> None:
    """Refuse what has no layer.

    Raises:
        NotLinear: with the reason.
    """
    if geometry.transposed:
        output_padding(geometry)
    if linear and not geometry.is_pointwise:
        raise NotLinear(f"{geometry} in place of a linear layer")
    if not linear and geometry.rank not in _CONVOLUTIONS:
        raise NotLinear(f"{geometry} over values with no spatial axes, which is no convolution")


def emit(
    affine: Affine,
    dtype: torch.dtype,
    like: Tensor | None = None,
    linear: bool = False,
    pads_same: bool = False,
) -> nn.Module:
    """The layer, or a pad and the layer, that computes ``affine`` in ``dtype``, with parameters that do not require gradients.

    ``like`` is a weight whose device and memory format are kept. ``linear`` asks for an ``nn.Linear``, ``pads_same`` for one layer
    with ``padding="same"`` where that is its padding and before and after differ.
    """
    g = affine.geometry
    check_emittable(g, linear)
    weight, bias = parameters(affine, dtype, like, linear)
    if linear:
        layer = _unset(nn.Linear, g.in_channels, g.out_channels, bias=False)
    elif g.transposed:
        pads = tuple(before for before, _ in g.padding)
        channels, sizes = (g.in_channels, g.out_channels), (g.kernel, g.stride, pads, output_padding(g))
        layer = _unset(_TRANSPOSED[g.rank], *channels, *sizes, g.groups, False, g.dilation)
    else:
        padding = native_padding(g)
        if padding == "same" and not pads_same:  # torch pads a copy for it too, and warns of that
            padding = None
        layer = _unset(
            _CONVOLUTIONS[g.rank],
            g.in_channels,
            g.out_channels,
            g.kernel,
            g.stride,
            0 if padding is None else padding,
            g.dilation,
            g.groups,
            False,
            g.mode if padding is not None and any(side for pair in g.padding for side in pair) else "zeros",
        )
        if padding is None:
            layer = nn.Sequential(_pad_layer(g), layer)
    convolution = layer[1] if isinstance(layer, nn.Sequential) else layer
    convolution._parameters.update(weight=weight, bias=bias)
    return layer.eval()


def _unset(kind: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """A layer of torch's before it has numbers: its own would draw random ones, which takes as long as folding does."""
    layer = _without_start(kind)(*args, **kwargs, device="meta")
    layer.__class__ = kind
    return layer


@cache
def _without_start(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (kind,), {"reset_parameters": lambda self: None})


def _pad_layer(geometry: Geometry) -> nn.Module:
    sides = [side for pair in reversed(geometry.padding) for side in pair]
    layer = _PADS[geometry.mode][geometry.rank]
    return layer(tuple(sides), 0.0) if geometry.mode == "zeros" else layer(tuple(sides))


def parameters(
    affine: Affine, dtype: torch.dtype, like: Tensor | None, linear: bool
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Weight and bias as a layer keeps them: computed in float64, cast last."""
    if linear:
        dense = _dense_matrix(affine)
        weight = dense
    else:
        weight = affine.module_weight()
    last = like is not None and _is_channels_last(like) and weight.ndim > 2
    form = _LAST[weight.ndim - 2] if last else torch.contiguous_format
    device = weight.device if like is None else like.device
    weight = _frozen(weight, dtype, device, form)
    return weight, None if affine.bias is None else _frozen(
        affine.bias, dtype, device, torch.contiguous_format
    )


def _frozen(
    tensor: Tensor, dtype: torch.dtype, device: torch.device, form: torch.memory_format
) -> nn.Parameter:
    copy = tensor.detach().to(device, dtype, copy=True, memory_format=form)
    return nn.Parameter(copy, requires_grad=False)


def _dense_matrix(affine: Affine) -> Tensor:
    groups, out, into = affine.weight.shape[:3]
    blocks = affine.weight.reshape(groups, out, into)
    return blocks[0] if groups == 1 else torch.block_diag(*blocks)


def _is_channels_last(tensor: Tensor) -> bool:
    if tensor.ndim not in (4, 5):
        return False
    return tensor.is_contiguous(memory_format=_LAST[tensor.ndim - 2]) and not tensor.is_contiguous()


def emptied(module: nn.Module) -> nn.Module:
    """What stands in the place of a layer whose work another one does now."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return FoldedNorm(module.num_features, module.running_mean).eval()
    return nn.Identity().eval()


def chain(modules: Sequence[tuple[str, nn.Module]]) -> nn.Module:
    """The modules one after the other: the module itself where there is one."""
    if len(modules) == 1:
        return modules[0][1]
    sequence = nn.Sequential().eval()
    for name, module in modules:
        sequence.add_module(name if name not in sequence._modules else f"{name}_", module)
    return sequence
