"""The layer that stands where a plain convolution stood: branches that amount to it."""

import copy
from dataclasses import dataclass
from math import prod
from typing import Any, no_type_check

import torch
from torch import Tensor, nn

from unbranch.affine import Affine, NotLinear
from unbranch.blocks import Branches, ConvSpec, Deployable, Sum
from unbranch.blocks.block import say_form
from unbranch.frontends.modules import StandIn, to_affine, to_convolution

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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
        assert isinstance(norm, NORMS)
        bare = NORMS[dims - 1](norm.num_features, norm.eps, dtype=torch.float64).eval()
        bare.load_state_dict(norm.state_dict(), strict=False)  # a norm with an activation is its norm here
        scale = scale_of(bare, torch.ones(1, norm.num_features, *(1,) * dims, dtype=torch.float64))
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
        self, spec: ConvSpec, branches: Branches, main: nn.Module, plain_norm: PlainNorm | None = None
    ) -> None:
        """``main`` is the branch that holds the kernel: the others are new."""
        super().__init__()
        self.plain_norm = plain_norm
        self.branches: nn.Module = branches
        self.main = next(name for name, module in branches.named_modules() if module is main)
        self.in_channels, self.out_channels = spec.in_channels, spec.out_channels
        self.kernel_size, self.stride, self.dilation = spec.kernel, spec.stride, spec.dilation
        self.padding = tuple(before for before, _ in spec.padding)
        self.groups, self.padding_mode = spec.groups, spec.padding_mode
        self.transposed, self.output_padding = False, (0,) * spec.dims
        self.example_size = spec.example_size
        self.register_load_state_dict_pre_hook(say_form)

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Tensor) -> Tensor:
        """The branches' sum."""
        return self.branches(x)

    def deploy_children(self) -> dict[str, nn.Module]:
        """The convolution; nothing where it stands there already."""
        if not isinstance(self.branches, Branches):
            return {}
        return {"branches": to_convolution(self.branches, self.example())}

    def __setattr__(self, name: str, value: Any) -> None:
        """A weight or bias that is put over the layer's own, as other people's fusing does, is that of the convolution it becomes."""
        if name in ("weight", "bias") and "branches" in self._modules:
            if isinstance(self.branches, Branches):
                self.branches = to_convolution(copy.deepcopy(self.branches).eval(), self.example())
            setattr(
                self.branches[-1] if isinstance(self.branches, nn.Sequential) else self.branches, name, value
            )
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
        layer = self.branches
        if isinstance(layer, Branches):
            layer = to_convolution(copy.deepcopy(layer).eval(), self.example())
        layer = layer[-1] if isinstance(layer, nn.Sequential) else layer
        weight = layer._parameters["weight"]
        assert weight is not None
        return weight, layer._parameters["bias"]

    def example(self) -> Tensor:
        """A small input on the branches' device and in their dtype."""
        like = next(self.branches.parameters())
        shape = (1, self.in_channels, *self.example_size)
        return torch.linspace(-1, 1, prod(shape)).reshape(shape).to(like)

    def last_norms(self) -> list[nn.Module]:
        """The norms whose outputs are summed, the main branch's first, or the norm of the sum; none where another layer ends a branch."""
        branches = self.branches
        if not isinstance(branches, Sum):
            return []
        if not isinstance(branches.norm, nn.Identity):
            return [branches.norm]
        names = sorted(branches.names, key=lambda name: name != self.main.split(".")[0])
        ends = [branches.get_submodule(name) for name in names]
        ends = [end[-1] if isinstance(end, nn.Sequential) else end for end in ends]
        return ends if all(isinstance(end, NORMS) for end in ends) else []

    def new_parameters(self) -> list[nn.Parameter]:
        """The parameters of every branch but the one that holds the kernel."""
        return [p for name, p in self.branches.named_parameters() if not name.startswith(f"{self.main}.")]


def expanded(
    target: Affine, spec: ConvSpec, branches: Branches, like: Tensor, plain_norm: nn.Module | None = None
) -> Expanded:
    """``branches``, one of them set so that the whole is ``target``: ``w_main += (W - W_all) / s``, with s the scale behind it.

    ``like`` is a tensor of the dtype and device wanted; ``plain_norm`` the one that ends the plain layer. The new layer is in eval mode.

    Raises:
        ValueError: no branch of the recipe can hold the kernel.
        NotLinear: the branches are not a convolution of the target's geometry.
    """
    branches = branches.double().eval()
    convolution, norm, branch, outer = _main(spec, branches)
    example = torch.linspace(-1, 1, prod((1, spec.in_channels, *spec.example_size)), dtype=torch.float64)
    example = example.reshape(1, spec.in_channels, *spec.example_size)
    now = to_affine(branches, example)
    wanted = target.to(torch.device("cpu")).to(torch.float64)
    _check_geometry(now, wanted)
    sample = example.new_ones((1, spec.out_channels, *spec.example_size))
    inner_scale = scale_of(norm, sample)
    outer_scale = scale_of(outer, sample)
    gap = wanted.module_weight() - now.module_weight()
    missing = wanted.weight.new_zeros(spec.out_channels) if wanted.bias is None else wanted.bias
    missing = missing if now.bias is None else missing - now.bias
    with torch.no_grad():
        column = (-1, *(1,) * (gap.ndim - 1))
        convolution.weight.add_(gap / (inner_scale * outer_scale).reshape(column))
        _shift_of(convolution, norm).add_(missing / outer_scale)
    remembered = None if plain_norm is None else PlainNorm.of(plain_norm, spec.dims)
    return Expanded(spec, branches.to(like), branch, remembered).eval()


def _main(
    spec: ConvSpec, branches: Branches
) -> tuple[nn.Conv1d | nn.Conv2d | nn.Conv3d, nn.Module | None, nn.Module, nn.Module]:
    """The convolution that can hold the kernel, the norm behind it, its branch, and the norm behind the sum."""
    if isinstance(branches, Sum):
        for name in branches.names:
            branch = branches.get_submodule(name)
            layers = list(branch) if isinstance(branch, nn.Sequential) else [branch]
            rest = [
                layer for layer in layers if not type(layer).__name__.endswith(("Pad1d", "Pad2d", "Pad3d"))
            ]
            first, norm = rest[0], rest[1] if len(rest) == 2 else None
            if not isinstance(first, nn.Conv1d | nn.Conv2d | nn.Conv3d) or len(rest) > 2:
                continue
            if first.kernel_size == spec.kernel and (norm or first)._parameters.get("bias") is not None:
                return first, norm, branch, branches.norm
    size = "x".join(map(str, spec.kernel))
    raise ValueError(
        f"the recipe has no branch with one {size} convolution and a shift, which could hold the kernel"
    )


def _shift_of(convolution: nn.Module, norm: nn.Module | None) -> Tensor:
    """Where a branch's constant is kept."""
    shift = (convolution if norm is None else norm)._parameters["bias"]
    assert shift is not None
    return shift


def scale_of(norm: nn.Module | None, sample: Tensor) -> Tensor:
    """What a norm multiplies each channel with."""
    if norm is None or isinstance(norm, nn.Identity):
        return sample.new_ones(sample.shape[1])
    return to_affine(norm, sample).weight.flatten()


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
            f"the recipe makes {a} with padding {a.padding}, the layer is {b} with padding {b.padding}"
        )
