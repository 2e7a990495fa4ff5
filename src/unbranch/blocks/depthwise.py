"""Depthwise blocks: RepViT's, RepGhost's, FastViT's mixer."""

from typing import Unpack, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks.block import Block, BlockOptions, Branches, Sum, per_output
from unbranch.blocks.repvgg import over_parameterized
from unbranch.blocks.spec import Axes, ConvSpec


def repvit(spec: ConvSpec) -> Sum:
    """kxk with a norm, 1x1 with a bias, the input, and a norm for the sum."""
    branches: dict[str, nn.Module] = {
        "dense": spec.conv_norm(),
        "pointwise": nn.Sequential(spec.conv(1, bias=True)),
    }
    if spec.carries_input:
        branches["shortcut"] = spec.carried()
    return Sum(branches, spec.norm(spec.out_channels))


def repghost(spec: ConvSpec) -> Sum:
    """kxk with a norm and the input through a norm."""
    _adds_input("RepGhost", spec)
    return Sum({"dense": spec.conv_norm(), "shortcut": spec.carried_norm()})


def _adds_input(block: str, spec: ConvSpec) -> None:
    if not spec.carries_input:
        raise ValueError(
            f"{block} adds the input itself, which needs as many channels out as in and stride 1, got "
            f"{spec.in_channels} -> {spec.out_channels} channels and stride {spec.stride}: use a block that leaves it out, as RepVGG's does"
        )


class Mixer(Branches):
    """y = x + scale * (mix(x) - norm(x)), scale one learnt number per channel.

    Raises ValueError where ``spec`` changes channels or strides.
    """

    def __init__(self, spec: ConvSpec, num_branches: int, scale: float) -> None:
        super().__init__()
        _adds_input("RepMixer", spec)
        self.mix = over_parameterized(spec, num_branches=num_branches, shortcut="identity")
        self.carried = spec.carried()
        self.norm = spec.norm(spec.in_channels)
        self.scale = nn.Parameter(torch.full((spec.in_channels, *(1,) * spec.dims), scale))

    @torch.no_grad()
    def take_up(self, kernel: Tensor, shift: Tensor) -> tuple[nn.Parameter, ...]:
        """``mix`` takes it, divided by ``scale``."""
        scale = self.scale.flatten()
        if not bool(scale.all()):
            return ()
        return self.mix.take_up(kernel / per_output(scale, kernel), shift / scale)

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c *size"]) -> Float[Tensor, "n c *size"]:
        """Mix."""
        carried = self.carried(x)
        return carried + self.scale * (self.mix(x) - self.norm(carried))


class RepVGGDW(Block):
    """y = act(norm(norm(w_k * x) + w_1 * x + b + x)), depthwise  (Wang et al., RepViT, CVPR 2024, arXiv:2307.09283).

    Shapes: (N, channels, *size) -> (N, channels, *ceil(size / stride)).

    >>> RepVGGDW(6)(torch.ones(1, 6, 7, 5)).shape
    torch.Size([1, 6, 7, 5])
    """

    def __init__(
        self, channels: int, kernel_size: Axes = 3, stride: Axes = 1, **options: Unpack[BlockOptions]
    ) -> None:
        super().__init__(channels, channels, kernel_size, stride, repvit, **depthwise(channels, options))


class RepGhostBlock(Block):
    """y = act(norm(w_k * x) + norm(x)), depthwise  (Chen et al., RepGhost, arXiv:2211.06088).

    Shapes: (N, channels, *size) -> the same.

    >>> RepGhostBlock(6)(torch.ones(1, 6, 7, 5)).shape
    torch.Size([1, 6, 7, 5])
    """

    def __init__(self, channels: int, kernel_size: Axes = 3, **options: Unpack[BlockOptions]) -> None:
        super().__init__(channels, channels, kernel_size, 1, repghost, **depthwise(channels, options))


class RepMixer(Block):
    """y = x + scale * (mix(x) - norm(x)), depthwise, ``mix`` a MobileOne sum  (Vasu et al., FastViT, ICCV 2023, arXiv:2303.14189).

    Shapes: (N, channels, *size) -> the same.

    >>> RepMixer(6)(torch.ones(1, 6, 7, 5)).shape
    torch.Size([1, 6, 7, 5])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Axes = 3,
        *,
        num_branches: int = 1,
        scale: float = 1e-5,
        **options: Unpack[BlockOptions],
    ) -> None:
        options.setdefault("activation", None)

        def recipe(spec: ConvSpec) -> Mixer:
            return Mixer(spec, num_branches, scale)

        super().__init__(channels, channels, kernel_size, 1, recipe, **depthwise(channels, options))


def depthwise(channels: int, options: BlockOptions) -> BlockOptions:
    """The options with one group for each channel."""
    return {**options, "groups": channels}
