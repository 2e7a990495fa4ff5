"""A border after a pointwise map, such that both together are still a convolution of the input."""

from collections import OrderedDict
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks.spec import ConvSpec, pad_layer


class BorderedPointwise(nn.Module):
    """y = f(pad(x)), f a 1x1 convolution with its norm or bias, computed as a padded f(x).

    Modes that repeat pixels repeat f's. Padding with zeros behind a bias is no convolution: the border would be 0 and not the bias; it
    is filled with f(0). In training it takes the norm's running statistics, as Ding et al. do (Diverse Branch Block, CVPR 2021).

    Shapes: (N, C_in, *size) -> (N, C_mid, *size + before + after).
    """

    def __init__(self, pointwise: nn.Module, spec: ConvSpec) -> None:
        super().__init__()
        self.pointwise = pointwise
        self.in_channels = spec.in_channels
        self.padding = spec.padding
        self.fills = spec.padding_mode == "zeros" and any(map(any, spec.padding))
        self.pad = pad_layer(spec.padding_mode, spec.padding)

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c *size"]) -> Float[Tensor, "n mid *padded"]:
        """The map, then the border, edge by edge."""
        y = self.pad(self.pointwise(x))
        if not self.fills:
            return y
        filling = self.filling()
        for axis, (before, after) in enumerate(self.padding, start=2):
            edges = [slice(None, before)] * (before > 0) + [slice(-after, None)] * (after > 0)
            for edge in edges:
                y[(slice(None),) * axis + (edge,)] = filling
        return y

    def filling(self) -> Tensor:
        """f(0), (1, C_mid, 1, ...), with running statistics."""
        like = next(self.pointwise.parameters())
        nothing = torch.zeros(
            1, self.in_channels, *(1,) * len(self.padding), dtype=like.dtype, device=like.device
        )
        for layer in self.pointwise if isinstance(self.pointwise, nn.Sequential) else [self.pointwise]:
            training = layer.training
            nothing = layer.train(False)(nothing)
            layer.train(training)
        return nothing


def bordered(spec: ConvSpec, pointwise: nn.Module, rest: "OrderedDict[str, nn.Module]") -> nn.Sequential:
    """``pointwise`` -> border -> ``rest``, whose first layer must not pad."""
    return nn.Sequential(OrderedDict([("bordered", BorderedPointwise(pointwise, spec)), *rest.items()]))
