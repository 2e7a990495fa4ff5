"""What a block will become: one convolution, and the layers from which its branches are made."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypedDict, Unpack

from torch import nn

from unbranch.blocks.pointwise import STRIDED_POINTWISE

Axes: TypeAlias = int | Sequence[int]
Padding: TypeAlias = int | str | Sequence[int | tuple[int, int]]
NormFactory: TypeAlias = Callable[[int], nn.Module]
LayerFactory: TypeAlias = Callable[..., nn.Module]

CONVOLUTIONS: dict[int, LayerFactory] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""By spatial axes, from one."""
PADS: dict[str, dict[int, LayerFactory]] = {
    "zeros": {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d},
    "reflect": {1: nn.ReflectionPad1d, 2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d},
    "replicate": {1: nn.ReplicationPad1d, 2: nn.ReplicationPad2d, 3: nn.ReplicationPad3d},
    "circular": {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d},
}


class SpecOptions(TypedDict, total=False):
    """What a convolution has besides channels, kernel and stride."""

    dilation: Axes
    groups: int
    padding: Padding | None
    """Pixels on both sides, one number an axis or a (before, after) pair; ``"valid"`` for none, ``"same"`` as torch's layers have it;
    None, the default, keeps ceil(size / stride) pixels."""
    padding_mode: str
    """``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``: for branches that read the border."""
    norm: NormFactory | None
    """Makes a branch's norm from its channels (``partial(nn.BatchNorm2d, eps=1e-3)``); None: batch norm."""
    dims: int
    """Spatial axes: 1, 2 or 3."""


def check_options(given: Mapping[str, object], known: type) -> None:
    """Refuse what ``known``, a `TypedDict`, does not name: a slip of the pen would count for nothing.

    Raises TypeError with the names that there are.
    """
    unknown = sorted(given.keys() - known.__annotations__.keys())
    if unknown:
        raise TypeError(f"no such option: {', '.join(unknown)}; there are {', '.join(known.__annotations__)}")


@dataclass(frozen=True)
class ConvSpec:
    """The convolution y[o] = sum_t w[t] x[stride * o + dilation * (t - centre) - first] that a block folds into.

    By default an axis pads dilation * ((k - 1) // 2) before and dilation * (k // 2) after, so tap ``centre = (k - 1)
    // 2`` looks at the pixel ``stride * o`` itself whatever the kernel and the output has ceil(size / stride) pixels.
    Any other padding has (``first``, ``last``) more than that, or less, as ``extra`` says for each axis: all branches are
    moved alike, those with smaller kernels still line up with the centre tap, and where that takes less than no padding
    they read the input cropped.

    Shapes: (N, in_channels, *size) -> (N, out_channels, *out), ``len(size) == dims``, ``out = (size + before + after -
    dilation * (k - 1) - 1) // stride + 1``.
    Raises ValueError for counts below one, groups that do not divide the channels, unknown padding modes and negative padding.

    >>> ConvSpec.of(16, 32, kernel_size=4, stride=2).padding
    ((1, 2), (1, 2))
    >>> ConvSpec.of(16, 32, kernel_size=4, stride=4, padding=0).around((1, 1))
    ((-1, -2), (-1, -2))
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    norm: NormFactory
    extra: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: Axes,
        stride: Axes = 1,
        **options: Unpack[SpecOptions],
    ) -> "ConvSpec":
        """The spec with one number an axis (``SpecOptions`` says what each option is).

        Raises TypeError for an option of another name.
        """
        check_options(options, SpecOptions)
        dims = options.get("dims", 2)
        if dims not in CONVOLUTIONS:
            raise ValueError(f"dims must be 1, 2 or 3, got {dims}")
        kernel = _per_axis("kernel_size", kernel_size, dims)
        strides = _per_axis("stride", stride, dims)
        dilation = _per_axis("dilation", options.get("dilation", 1), dims)
        padding = options.get("padding")
        return cls(
            in_channels,
            out_channels,
            kernel,
            strides,
            dilation,
            options.get("groups", 1),
            options.get("padding_mode", "zeros"),
            options.get("norm") or NORMS[dims - 1],
            ((0, 0),) * dims if padding is None else _extra(padding, kernel, strides, dilation),
        )

    def __post_init__(self) -> None:
        for name, value in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            if self.groups < 1 or value % self.groups:
                raise ValueError(f"{name}={value} cannot be divided into groups={self.groups}")
        if self.padding_mode not in PADS:
            raise ValueError(f"padding_mode={self.padding_mode!r} is none of {', '.join(PADS)}")

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def is_pointwise(self) -> bool:
        """Whether the kernel is a single tap, so that a 1x1 branch would say the same thing twice."""
        return all(taps == 1 for taps in self.kernel)

    @property
    def carries_input(self) -> bool:
        """Whether the output has the input's channels and its steps, so that the input itself, moved as the kernel is, can be a branch."""
        return self.in_channels == self.out_channels and all(step == 1 for step in self.stride)

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """(before, after) of each axis."""
        return self.around(self.kernel)

    @property
    def example_size(self) -> tuple[int, ...]:
        """A small input size, in pixels, at which every border mode is defined and taps see the inside."""
        axes = zip(self.kernel, self.stride, self.dilation, self.padding, strict=True)
        return tuple(max(d * (k - 1) + s, *sides) + 1 for k, s, d, sides in axes)

    def around(self, kernel: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """(before, after) padding that puts the centre tap of ``kernel`` on the block's own centre; negative where it crops."""
        axes = zip(kernel, self.dilation, self.extra, strict=True)
        return tuple((first + d * ((k - 1) // 2), last + d * (k // 2)) for k, d, (first, last) in axes)

    def pointwise(self, in_channels: int, out_channels: int) -> "ConvSpec":
        """A 1x1 layer before or behind the kernel, which gives a pixel for each pixel."""
        ones, still = (1,) * self.dims, ((0, 0),) * self.dims
        return replace(
            self,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel=ones,
            stride=ones,
            dilation=ones,
            extra=still,
        )

    def carried(self) -> nn.Module:
        """The input where the kernel's centre reads it: the input itself, or padded, or cropped."""
        return pad_layer(self.padding_mode, self.extra)

    def carried_norm(self) -> nn.Module:
        """The input where the kernel's centre reads it, and a norm."""
        norm = self.norm(self.out_channels)
        if not any(map(any, self.extra)):
            return norm
        return nn.Sequential(OrderedDict(pad=self.carried(), norm=norm))

    def conv(self, kernel_size: Axes | None = None, *, bias: bool = False) -> OrderedDict[str, nn.Module]:
        """``{"pad"?, "conv"}``: a convolution with the spec's stride, dilation and groups, centred.

        The pad is a module of its own where before and after differ or crop, which a convolution cannot say, and before a strided 1x1,
        which takes its pixels itself.
        """
        kernel = self.kernel if kernel_size is None else _per_axis("kernel_size", kernel_size, self.dims)
        padding = self.around(kernel)
        strided = self.stride != (1,) * self.dims and kernel == (1,) * self.dims
        native = all(before == after >= 0 for before, after in padding)
        if strided and any(map(any, padding)):
            native = False
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if not native:
            layers["pad"] = pad_layer(self.padding_mode, padding)
        layers["conv"] = (STRIDED_POINTWISE if strided else CONVOLUTIONS)[self.dims](
            self.in_channels,
            self.out_channels,
            kernel,
            self.stride,
            tuple(before for before, _ in padding) if native else 0,
            self.dilation,
            self.groups,
            bias,
            self.padding_mode if native else "zeros",
        )
        return layers

    def unpadded(self, *, bias: bool = False) -> nn.Module:
        """The spec's convolution for an input that has its border already."""
        make = CONVOLUTIONS[self.dims]
        return make(
            self.in_channels, self.out_channels, self.kernel, self.stride, 0, self.dilation, self.groups, bias
        )

    def conv_norm(self, kernel_size: Axes | None = None) -> nn.Sequential:
        """``Sequential(pad?, conv, norm)``: the usual branch."""
        return nn.Sequential(OrderedDict(self.conv(kernel_size), norm=self.norm(self.out_channels)))


def pad_layer(mode: str, padding: Sequence[tuple[int, int]]) -> nn.Module:
    """The module that pads each axis by its (before, after), or crops; torch lists the last axis first."""
    if not any(side for pair in padding for side in pair):
        return nn.Identity()
    if all(side <= 0 for pair in padding for side in pair):
        mode = "zeros"  # torch's other modes do not crop
    if mode == "circular" and any(min(pair) < 0 < max(pair) for pair in padding):
        raise ValueError(
            f"a branch would have circular padding {tuple(padding)}, which wraps around a cropped end and is no convolution: "
            "take another padding or another padding_mode, or leave the branch out"
        )
    return PADS[mode][len(padding)](_last_first(padding))


def _last_first(padding: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(width for pair in reversed(padding) for width in pair)


def _per_axis(name: str, value: Axes, dims: int) -> tuple[int, ...]:
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims or any(v < 1 for v in values):
        raise ValueError(f"{name}={value} must be one positive number or {dims} of them")
    return values


def _extra(
    padding: Padding, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """How much more than the padding that keeps the centre tap on its pixel each axis has, (before, after)."""
    spare = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if padding != "same":
        sides = _sides(padding, len(kernel))
    elif all(step == 1 for step in stride):
        sides = [(n // 2, n - n // 2) for n in spare]
    else:
        raise ValueError(f"padding='same' needs stride 1, as torch's layers do, got {stride}: give numbers")
    axes = zip(sides, kernel, dilation, strict=True)
    return tuple((b - d * ((k - 1) // 2), a - d * (k // 2)) for (b, a), k, d in axes)


def _sides(padding: Padding, dims: int) -> list[tuple[int, int]]:
    """(before, after) of each axis."""
    each = 0 if padding == "valid" else padding
    each = [each] * dims if isinstance(each, int) else [] if isinstance(each, str) else each
    pairs = [(side, side) if isinstance(side, int) else side for side in each]
    if len(pairs) != dims or any(min(pair) < 0 for pair in pairs):
        raise ValueError(
            f"padding={padding!r} must be 'same', 'valid', one number from 0 on, or {dims} of them or of (before, after) pairs"
        )
    return pairs
