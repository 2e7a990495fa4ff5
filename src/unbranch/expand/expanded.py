"""The layer that stands where a plain convolution stood: branches that amount to it."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, no_type_check

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbranch.affine import Affine, NotLinear
from unbranch.blocks import Branches, ConvSpec, Deployable
from unbranch.blocks.block import say_form, scale_of
from unbranch.blocks.pointwise import layout_of
from unbranch.blocks.spec import NORMS
from unbranch.frontends.modules import StandIn, to_affine, to_convolution


@dataclass(frozen=True)
class PlainNorm:
    """What the plain layer's norm makes of a batch in training: ``g (y - mean y) + mean``, ``g = deviation / sqrt(var y + floor)``.

    y is the layer's output in eval mode; all are per channel, (out,), in float64.
    """

    mean: Tensor
    deviation: Tensor
    floor: Tensor

    @classmethod
    def of(cls, norm: nn.Module, dims: int) -> "PlainNorm":
        """With ``y = s x + t`` in eval mode, ``deviation = |gamma|`` and ``floor = eps s**2``."""
        assert isinstance(norm, _BatchNorm)
        bare = NORMS[dims - 1](norm.num_features, norm.eps, dtype=torch.float64).eval()
        bare.load_state_dict(norm.state_dict(), strict=False)  # a norm with an activation is its norm here
        scale = scale_of(bare, torch.ones(norm.num_features, 1, *(1,) * dims, dtype=torch.float64))
        return cls(bare.bias.detach(), bare.weight.detach().abs(), norm.eps * scale**2)

    def gain(self, variance: Tensor) -> Tensor:
        """g for an output of that variance in eval mode; 1 for a channel that the norm switches off."""
        deviation, floor = self.deviation.to(variance), self.floor.to(variance)
        return torch.where(deviation > 0, deviation / torch.sqrt(variance + floor), 1.0)


class Expanded(Deployable, StandIn):
    """``y = branches(x)``: a trained convolution (and the norm behind it) written as a sum of branches, the same map in eval mode.

    It shows the convolution that it amounts to, so code that asks a layer for its ``weight``, ``bias``, ``stride`` or ``padding``, or
    folds it into something else, finds what it expects.

    Shapes: those of the convolution.
    """

    def __init__(
        self, spec: ConvSpec, branches: Branches, new: Iterable[str], plain_norm: PlainNorm | None = None
    ) -> None:
        """``new`` names the parameters of the branches that the layer did not have."""
        super().__init__()
        self.plain_norm = plain_norm
        self.branches: nn.Module = branches
        self.new = frozenset(new)
        self.in_channels, self.out_channels = spec.in_channels, spec.out_channels
        self.kernel_size, self.stride, self.dilation = spec.kernel, spec.stride, spec.dilation
        pads_alike = all(before == after for before, after in spec.padding)
        self.padding = tuple(before for before, _ in spec.padding) if pads_alike else "same"
        self.groups, self.padding_mode = spec.groups, spec.padding_mode
        self.transposed, self.output_padding = False, (0,) * spec.dims
        self.example_size = spec.example_size
        self.register_load_state_dict_pre_hook(say_form)

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, input: Tensor) -> Tensor:
        """The branches' sum; the argument has the name that it has in torch's layers."""
        return self.branches(input)

    def deploy_children(self) -> dict[str, nn.Module]:
        """The convolution; nothing where it stands there already."""
        if not isinstance(self.branches, Branches):
            return {}
        return {"branches": to_convolution(self.branches, self.example(), pads_same=True)}

    def __setattr__(self, name: str, value: Any) -> None:
        """A weight or bias that is put over the layer's own, as other people's fusing does, is that of the convolution it becomes."""
        if name in ("weight", "bias") and "branches" in self._modules:
            if self._layer() is None:
                self.branches = self._folded()
            setattr(self._layer(), name, value)
        else:
            super().__setattr__(name, value)

    def deployed_form(self) -> nn.Module | None:
        """The convolution itself, once the branches have become it."""
        return None if isinstance(self.branches, Branches) else self.branches

    @property
    def weight(self) -> Tensor:
        """The kernel of the convolution that the branches amount to in eval mode, (out, in / groups, *k)."""
        return self._convolution()[0]

    @property
    def bias(self) -> Tensor | None:
        """Its bias, (out,)."""
        return self._convolution()[1]

    def _convolution(self) -> tuple[Tensor, Tensor | None]:
        layer = self._layer() or _layer_of(self._folded())
        assert layer is not None
        weight = layer._parameters["weight"]
        assert weight is not None
        return weight, layer._parameters["bias"]

    def _folded(self) -> nn.Module:
        """What the branches are in eval mode; they stay as they are."""
        return to_convolution(copy.deepcopy(self.branches).eval(), self.example(), pads_same=True)

    def _layer(self) -> nn.Module | None:
        """The convolution that stands in the branches' place; None while they are there."""
        return _layer_of(self.branches)

    def example(self) -> Tensor:
        """A small input on the branches' device and in their dtype."""
        like = next(self.branches.parameters())
        shape = (1, self.in_channels, *self.example_size)
        return torch.linspace(-1, 1, prod(shape)).reshape(shape).to(like)

    def last_norms(self) -> list[nn.Module]:
        """``Branches.last_norms``, that of the branch which holds the kernel first; none in deploy form."""
        if not isinstance(self.branches, Branches):
            return []
        new = {id(p) for p in self.new_parameters()}
        return sorted(
            self.branches.last_norms(), key=lambda norm: all(id(p) in new for p in norm.parameters())
        )

    def new_parameters(self) -> list[nn.Parameter]:
        """The parameters of every branch but the one that holds the kernel; none in deploy form."""
        return [p for name, p in self.branches.named_parameters() if name in self.new]


def _layer_of(module: nn.Module) -> nn.Module | None:
    """A convolution, alone or behind a pad."""
    last = module[-1] if isinstance(module, nn.Sequential) and len(module) == 2 else module
    alone = {id(p) for p in module.parameters()} == {id(p) for p in last.parameters()}
    return last if isinstance(last, nn.Conv1d | nn.Conv2d | nn.Conv3d) and alone else None


def expanded(
    target: Affine, spec: ConvSpec, branches: Branches, like: Tensor, plain_norm: nn.Module | None = None
) -> Expanded:
    """``branches``, one of which takes up what is missing, so that the whole is ``target`` (`Branches.take_up`).

    ``like`` is a kernel of the dtype, device and memory format wanted; ``plain_norm`` the one that ends the plain layer. The new layer is
    in eval mode.

    Raises:
        ValueError: no branch of the recipe can hold the kernel, or not in the dtype.
        NotLinear: the branches are not a convolution of the target's geometry.
    """
    branches = branches.double().eval()
    example = torch.linspace(-1, 1, prod((1, spec.in_channels, *spec.example_size)), dtype=torch.float64)
    now = to_affine(branches, example.reshape(1, spec.in_channels, *spec.example_size))
    wanted = target.to(torch.device("cpu")).to(torch.float64)
    _check_geometry(now, wanted)
    missing = wanted.weight.new_zeros(spec.out_channels) if wanted.bias is None else wanted.bias
    missing = missing if now.bias is None else missing - now.bias
    held = branches.take_up(wanted.module_weight() - now.module_weight(), missing)
    if not held:
        size = "x".join(map(str, spec.kernel))
        raise ValueError(
            f"the recipe has no branch with a {size} kernel and a shift, which could take up the layer's"
        )
    own = {id(p) for p in held}
    new = [name for name, p in branches.named_parameters() if id(p) not in own]
    remembered = None if plain_norm is None else PlainNorm.of(plain_norm, spec.dims)
    branches = branches.to(like).to(memory_format=layout_of(like))
    if not all(bool(torch.isfinite(p).all()) for p in branches.parameters()):
        raise ValueError(f"its branches would hold numbers beyond {str(like.dtype).removeprefix('torch.')}")
    return Expanded(spec, branches, new, remembered).eval()


def _check_geometry(now: Affine, wanted: Affine) -> None:
    a, b = now.geometry, wanted.geometry
    same = (a.kernel, a.stride, a.padding, a.dilation, a.groups) == (
        b.kernel,
        b.stride,
        b.padding,
        b.dilation,
        b.groups,
    )
    if not same or (a.is_padded and a.mode != b.mode):
        raise NotLinear(
            f"the recipe makes {a} with padding {a.padding}, the layer is {b} with padding {b.padding}: "
            "give the convolution itself that padding, or take another recipe"
        )
