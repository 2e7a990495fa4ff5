"""`Affine`: a convolution and a bias as a value, and what it means."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from unbranch.affine.geometry import PADDING_MODES, Geometry, check_wrap

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, eq=False)
class Affine:
    """The map ``y = W * x + b``: a convolution over 0 to 3 spatial axes, or its transpose.

    The weight is stored ``(groups, out / groups, in / groups, *kernel)``, transposed or not, so that scaling an output channel
    is a product along axis 1 whatever the op was. ``bias`` is ``(out,)`` or None, which means exactly zero.
    ``padding`` is a (before, after) pair per axis; negative values crop. For a transposed map it is what is cut from the full output.

    Raises:
        ValueError: the parts do not fit together.
        NotLinear: circular padding is positive on one side and negative on the other.

    Example:
        >>> Affine(torch.ones(1, 8, 4, 3, 3), None, (1, 1), ((1, 1), (1, 1)), (1, 1))(torch.ones(2, 4, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    weight: Float[Tensor, "groups out in *kernel"]
    bias: Float[Tensor, " channels"] | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    mode: str = "zeros"
    transposed: bool = False

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        rank = self.weight.ndim - 3
        if (
            rank not in (0, 1, 2, 3)
            or not len(self.stride) == len(self.padding) == len(self.dilation) == rank
        ):
            raise ValueError(
                f"weight {tuple(self.weight.shape)} with stride {self.stride}, padding {self.padding}, dilation {self.dilation}"
            )
        if self.mode not in PADDING_MODES:
            raise ValueError(f"padding mode {self.mode!r} is none of {', '.join(PADDING_MODES)}")
        check_wrap(self.mode, self.padding)
        if self.bias is not None and self.bias.numel() != self.weight.shape[0] * self.weight.shape[1]:
            raise ValueError(f"bias of {self.bias.numel()} for weight {tuple(self.weight.shape)}")

    @classmethod
    def of(cls, geometry: Geometry, weight: Tensor, bias: Tensor | None) -> Self:
        """The map of a geometry with these numbers."""
        g = geometry
        return cls(weight, bias, g.stride, g.padding, g.dilation, g.mode, g.transposed)

    @classmethod
    def pointwise(
        cls, weight: Float[Tensor, "groups out in"], bias: Tensor | None = None, rank: int = 2
    ) -> Self:
        """The 1x1 map of a matrix per group."""
        return cls(
            weight.reshape(*weight.shape, *(1,) * rank), bias, (1,) * rank, ((0, 0),) * rank, (1,) * rank
        )

    @classmethod
    def diagonal(cls, scale: Float[Tensor, " channels"], shift: Tensor | None = None, rank: int = 2) -> Self:
        """``scale * x + shift`` per channel."""
        return cls.pointwise(scale.reshape(-1, 1, 1), shift, rank)

    @classmethod
    def identity(cls, channels: int, rank: int = 2, dtype: torch.dtype = torch.float64) -> Self:
        """``y = x``."""
        return cls.diagonal(torch.ones(channels, dtype=dtype), None, rank)

    @cached_property
    def geometry(self) -> Geometry:
        """The integers alone."""
        groups, out, into = self.weight.shape[:3]
        return Geometry(
            in_channels=groups * into,
            out_channels=groups * out,
            groups=groups,
            kernel=tuple(self.weight.shape[3:]),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mode=self.mode,
            transposed=self.transposed,
            biased=self.bias is not None,
        )

    @property
    def groups(self) -> int:
        """The number of groups."""
        return self.weight.shape[0]

    @property
    def in_channels(self) -> int:
        """Channels read."""
        return self.weight.shape[0] * self.weight.shape[2]

    @property
    def out_channels(self) -> int:
        """Channels written."""
        return self.weight.shape[0] * self.weight.shape[1]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size per axis."""
        return tuple(self.weight.shape[3:])

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return self.weight.ndim - 3

    def lift(self, rank: int) -> Self:
        """A rank-0 map as a pointwise one over ``rank`` spatial axes; any other is returned as it is."""
        if self.rank or not rank:
            return self
        return self.pointwise(self.weight, self.bias, rank)

    def to(self, *target: torch.dtype | torch.device) -> Self:
        """The same map in another dtype, on another device, or both."""
        weight, bias = self.weight, self.bias
        for one in target:
            weight, bias = weight.to(one), None if bias is None else bias.to(one)
        return (
            self if weight is self.weight and bias is self.bias else replace(self, weight=weight, bias=bias)
        )

    def module_weight(self) -> Tensor:
        """The weight as torch's layers keep it: (out, in / groups, *k), or (in, out / groups, *k) for a transposed one."""
        weight = self.weight.transpose(1, 2) if self.transposed else self.weight
        return weight.flatten(0, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """``apply(self, x)``."""
        return apply(self, x)


def apply(affine: Affine, x: Float[Tensor, "batch channels *spatial"]) -> Float[Tensor, "batch out *size"]:
    """What the map means: ``W * x + b``. Slow and plain; every test's oracle.

    Example:
        >>> apply(Affine.identity(3, dtype=torch.float32), torch.zeros(1, 3, 5, 7)).shape
        torch.Size([1, 3, 5, 7])
    """
    if affine.rank == 0:
        split = x.unflatten(1, (affine.groups, -1))
        y = torch.einsum("ngi,goi->ngo", split, affine.weight).flatten(1)
        return y if affine.bias is None else y + affine.bias
    sides = list(chain.from_iterable(reversed(affine.padding)))
    weight = affine.module_weight()
    if affine.transposed:
        convolve = _TRANSPOSED[affine.rank]
        full = convolve(x, weight, None, affine.stride, groups=affine.groups, dilation=affine.dilation)
        y = F.pad(full, [-side for side in sides])
        return y if affine.bias is None else y + affine.bias.reshape(-1, *(1,) * affine.rank)
    if any(sides):
        x = F.pad(x, sides, mode="constant" if affine.mode == "zeros" else affine.mode)
    convolve = _CONVOLUTIONS[affine.rank]
    return convolve(x, weight, affine.bias, affine.stride, 0, affine.dilation, affine.groups)
