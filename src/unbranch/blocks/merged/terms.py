"""What a branch is, read from its modules: a convolution of the input (or the input itself) and a batch norm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from unbranch.blocks.pointwise import StridedPointwise1d, StridedPointwise2d, StridedPointwise3d
from unbranch.blocks.shortcuts import FixedConv
from unbranch.blocks.spec import NORMS
from unbranch.ops.batch_norm import statistics

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, StridedPointwise1d, StridedPointwise2d, StridedPointwise3d)
ZERO_PADS = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)


class Apart(ValueError):
    """Why a branch cannot be merged in training and is computed by itself."""


class Window(NamedTuple):
    """A term but for its numbers: ``size`` taps an axis, ``dilation`` pixels apart, the first ``before`` pixels before the output."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    groups: int
    outputs: int
    """Channels."""
    has_kernel: bool = True
    """Or the input itself goes through the norm."""

    @property
    def taps(self) -> int:
        """Of all axes."""
        return prod(self.size)

    def depth(self, channels: int) -> int:
        """Values in a patch of one group, of an input of so many channels."""
        return channels // self.groups * self.taps

    @property
    def is_pointwise(self) -> bool:
        """Whether it reads the pixel at its output and no other, border included."""
        return not any((*self.before, *self.after)) and self.taps == 1

    def out_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Pixels out for pixels in."""
        ends = zip(size, self.size, self.stride, self.dilation, self.before, self.after, strict=True)
        return tuple((n + b + a - d * (k - 1) - 1) // s + 1 for n, k, s, d, b, a in ends)


@dataclass(frozen=True, eq=False)
class Term:
    """norm(w * x), with the weight (C_out, C_in / groups, *size); None where the input itself goes through the norm."""

    name: str
    norm: nn.modules.batchnorm._BatchNorm
    weight: Tensor | None
    window: Window
    modules: tuple[nn.Module, ...]
    """The branch and what it holds."""
    layers: tuple[nn.Module, ...]
    """In front of the norm."""

    def value(self, x: Tensor) -> Tensor:
        """w * x: what its norm is given."""
        for layer in self.layers:
            x = layer(x)
        return x

    @cached_property
    def parameters(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Kernel, gamma and beta, None where there is none."""
        return self.weight, self.norm.weight, self.norm.bias


def read_term(name: str, branch: nn.Module, x: Tensor) -> Term:
    """The term that ``branch`` is for an input like ``x``, (N, C_in, *size).

    Raises:
        Apart: it is none, with the reason.
    """
    layers = [branch]
    if type(branch) is nn.Sequential:
        layers += branch._modules.values()
    for layer in layers:
        if (hook := hook_of(layer)) is not None:
            raise Apart(f"{type(layer).__name__} has {hook}")
    *linear, norm = layers[1:] or layers
    parts = tuple(layers), tuple(linear)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or type(norm) not in NORMS:
        raise Apart(f"ends in {type(norm).__name__}, not in a batch norm over this process's own batch")
    if not norm.training:
        raise Apart("its norm is frozen (in eval mode)")
    dims = NORMS.index(type(norm)) + 1
    if x.ndim != dims + 2:
        raise Apart(f"{type(norm).__name__} merges inputs of {dims + 2} axes, not {tuple(x.shape)}")
    channels = x.shape[1]
    border = ((0, 0),) * dims
    if linear and isinstance(pad := linear[0], ZERO_PADS):
        flat = pad.padding
        linear = linear[1:]
        border = tuple((flat[2 * axis], flat[2 * axis + 1]) for axis in reversed(range(len(flat) // 2)))
        if len(border) != dims or any(n < 0 for n in flat):
            raise Apart(f"{pad} adds no border to {dims} spatial axes")
    if not linear:
        if any(map(any, border)):
            raise Apart("pads the input in front of its norm")
        if norm.num_features != channels:
            raise Apart(f"its norm is of {norm.num_features} channels, the input has {channels}")
        ones, none = (1,) * dims, (0,) * dims
        window = Window(ones, ones, ones, none, none, channels, channels, has_kernel=False)
        term = Term(name, norm, None, window, *parts)
    else:
        weight, window = _convolution(linear, norm, border)
        term = Term(name, norm, weight, window, *parts)
        _check_kernel(term, channels, dims)
    _check_parameters(term, x)
    return term


def _check_kernel(term: Term, channels: int, dims: int) -> None:
    """A kernel that torch itself would refuse for such an input, or for the norm behind it: its branch then says so."""
    assert term.weight is not None
    shape, groups = tuple(term.weight.shape), term.window.groups
    if len(shape) != dims + 2 or shape[1] * groups != channels:
        raise Apart(f"its kernel {shape}, groups={groups}, is not for {channels} channels on {dims} axes")
    if shape[0] != term.norm.num_features or shape[0] % groups:
        raise Apart(f"its kernel {shape}, groups={groups}, is not for a norm of {term.norm.num_features}")


def _check_parameters(term: Term, x: Tensor) -> None:
    """What torch's own norm would refuse is left to it."""
    mean, variance = statistics(term.norm)
    if any(
        p is not None and (p.dtype, p.device) != (x.dtype, x.device)
        for p in (*term.parameters, mean, variance)
    ):
        raise Apart(f"its parameters or statistics are not {x.dtype} on {x.device}, as the input is")
    channels = term.window.outputs
    given = (*term.parameters[1:], mean, variance)
    if any(p is not None and p.numel() != channels for p in given):
        raise Apart(f"its norm's parameters or statistics are not of {channels} channels")
    if term.norm.eps <= 0 or (mean is None) != (variance is None):
        raise Apart("its norm is none that torch trains")


def _convolution(
    linear: Sequence[nn.Module],
    norm: nn.modules.batchnorm._BatchNorm,
    border: tuple[tuple[int, int], ...],
) -> tuple[Tensor, Window]:
    if len(linear) > 1:
        raise Apart(f"has {' and '.join(type(layer).__name__ for layer in linear)} in front of its norm")
    conv = linear[0]
    if type(conv) is FixedConv:
        own: tuple[int, ...] = (0,) * len(border)
    elif isinstance(conv, CONVOLUTIONS) and type(conv) in CONVOLUTIONS:
        if conv.bias is not None:
            raise Apart("its convolution has a bias")
        if isinstance(conv.padding, str):
            raise Apart(f"padding={conv.padding!r}")
        own = conv.padding
        if conv.padding_mode != "zeros" and any(own):
            raise Apart(f"its border is padded by {conv.padding_mode!r}")
    else:
        raise Apart(f"has {type(conv).__name__} in front of its norm")
    before = tuple(b + p for (b, _), p in zip(border, own, strict=True))
    after = tuple(a + p for (_, a), p in zip(border, own, strict=True))
    window = Window(
        tuple(conv.weight.shape[2:]),
        tuple(conv.stride),
        tuple(conv.dilation),
        before,
        after,
        conv.groups,
        norm.num_features,
    )
    return conv.weight, window


def hook_of(layer: nn.Module) -> str | None:
    """What would wait for a call of this layer: a hook, or a forward that was put in the place of the class's."""
    if any(hooks_of(layer)):
        return "hooks"
    return "a forward of its own" if "forward" in vars(layer) else None


def hooks_of(layer: nn.Module) -> tuple[Mapping[int, object], ...]:
    """The registers of what waits for its calls."""
    return (
        layer._forward_pre_hooks,
        layer._forward_hooks,
        layer._backward_pre_hooks,
        layer._backward_hooks,
    )


def any_global_hook() -> bool:
    """Whether hooks were registered for every module there is."""
    return any(
        (
            torch_module._global_forward_pre_hooks,
            torch_module._global_forward_hooks,
            torch_module._global_backward_pre_hooks,
            torch_module._global_backward_hooks,
        )
    )


def plain(x: object) -> bool:
    """Whether ``x`` is a tensor with values, outside any trace or transform of functions, forward-mode derivatives included."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def by_steps(g: Tensor) -> bool:
    """Whether more is asked of a gradient than its value: to be differentiated, as one of many at once, or with a derivative of its own."""
    many = is_legacy_batchedtensor(g) or is_batchedtensor(g)  # in ``is_grads_batched=True`` and in vmap
    return many or torch.is_grad_enabled() or forward_ad._current_level >= 0


def in_channels_last(x: Tensor) -> bool:
    """Whether all values lie in channels-last, and not by accident in torch's own layout too."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
