"""OREPA's block."""

from dataclasses import replace
from math import prod
from typing import Unpack, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbranch.affine import Affine, add, compose, scale
from unbranch.blocks.block import Block, BlockOptions, Branches, Sum, per_output, scale_of
from unbranch.blocks.shortcuts import shortcut_branch
from unbranch.blocks.spec import NORMS, Axes, ConvSpec, pad_layer


class Squeezed(Branches):
    """y = norm(w * x), w = s_k w_k + s_1 w_1 + s_s (w_1' -> w_k') + s_a (w_1'' -> mean), all scales learnt per channel.

    The branches are summed as kernels, by the algebra, before the one convolution runs: training costs one convolution.
    """

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        # For its geometry: the factory of the norm may be a lambda, with which no module could be pickled.
        self.spec = replace(spec, norm=NORMS[spec.dims - 1])
        self.dense, self.pointwise = _kernel(spec, spec.kernel), _kernel(spec, (1,) * spec.dims)
        self.first, self.second = _kernel(spec, (1,) * spec.dims, inner=True), _kernel(spec, spec.kernel)
        self.averaged = _kernel(spec, (1,) * spec.dims)
        self.scales = nn.Parameter(torch.full((4, spec.out_channels), 0.5))
        self.pad = pad_layer(spec.padding_mode, spec.padding)
        self.norm = spec.norm(spec.out_channels)

    def kernel(self) -> Affine:
        """The sum of the branches as a kernel, whatever the padding holds; differentiable."""
        spec = self.spec
        mean = self.dense.new_full((spec.out_channels, 1, 1, *spec.kernel), 1 / prod(spec.kernel))
        branches = [
            self._map(self.dense),
            self._map(self.pointwise),
            compose(Affine.pointwise(self.first.flatten(3)[..., 0], None, spec.dims), self._map(self.second)),
            compose(
                Affine.pointwise(self.averaged.flatten(3)[..., 0], None, spec.dims),
                Affine(mean, None, spec.stride, spec.padding, spec.dilation),
            ),
        ]
        return add(*(scale(branch, s) for branch, s in zip(branches, self.scales, strict=True)))

    @torch.no_grad()
    def take_up(self, kernel: Tensor, shift: Tensor) -> tuple[nn.Parameter, ...]:
        """``w_k += kernel / (s_k s)``, s the norm's scale."""
        scale = self.scales[0] * scale_of(self.norm, kernel)
        bias = self.norm._parameters.get("bias")
        if bias is None or not bool(scale.all()):
            return ()
        self.dense.add_((kernel / per_output(scale, kernel)).view_as(self.dense))
        bias.add_(shift)
        return (self.dense, *self.norm.parameters())

    def last_norms(self) -> list[nn.Module]:
        """Its own."""
        return [self.norm]

    def _map(self, weight: Tensor) -> Affine:
        spec = self.spec
        return Affine(weight, None, spec.stride, spec.around(weight.shape[3:]), spec.dilation)

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c_in *size"]) -> Float[Tensor, "n c_out *out"]:
        """One convolution and its norm."""
        spec, weight = self.spec, self.kernel().module_weight()
        convolve = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[spec.dims - 1]
        return self.norm(convolve(self.pad(x), weight, None, spec.stride, 0, spec.dilation, spec.groups))


def _kernel(spec: ConvSpec, size: tuple[int, ...], inner: bool = False) -> nn.Parameter:
    out = (spec.in_channels if inner else spec.out_channels) // spec.groups
    weight = torch.empty(spec.groups, out, spec.in_channels // spec.groups, *size)
    for group in weight:
        nn.init.kaiming_uniform_(group, a=5**0.5)
    return nn.Parameter(weight)


class OREPABlock(Block):
    """y = act(norm((sum_b s_b w_b) * x)), the branches squeezed into one kernel at every step  (Hu et al., OREPA, CVPR 2022,
    arXiv:2204.00826).

    Shapes: (N, in_channels, *size) -> (N, out_channels, *ceil(size / stride)).

    >>> OREPABlock(4, 8)(torch.ones(1, 4, 7, 5)).shape
    torch.Size([1, 8, 7, 5])
    """

    recipe = Squeezed


def beside_squeezed(spec: ConvSpec) -> Sum:
    """OREPA's kernel with its norm, 1x1 with a norm, and the input through a norm where channels stay and the stride is 1."""
    branches: dict[str, nn.Module] = {"dense": Squeezed(spec), "pointwise": spec.conv_norm(1)}
    carried = shortcut_branch("auto", spec)
    return Sum(branches if carried is None else {**branches, "shortcut": carried})


class RepConvOREPA(Block):
    """y = silu(OREPA(x) + norm(w_1 * x) + norm(x)): RepConv whose kxk is OREPA's  (YOLOv7's RepConv_OREPA).

    Shapes and errors are ``OREPABlock``'s; the input itself is a branch where channels stay and the stride is 1.

    >>> RepConvOREPA(4, 4)(torch.ones(1, 4, 7, 5)).shape
    torch.Size([1, 4, 7, 5])
    """

    recipe = staticmethod(beside_squeezed)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Axes = 3,
        stride: Axes = 1,
        **options: Unpack[BlockOptions],
    ) -> None:
        options.setdefault("activation", "silu")
        super().__init__(in_channels, out_channels, kernel_size, stride, **options)
