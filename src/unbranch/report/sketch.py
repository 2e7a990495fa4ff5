"""Blocks and recipes in words: what stands in each branch, and what follows their sum."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import singledispatch

from torch import nn

from unbranch.blocks import Branches, ConvSpec, Sum
from unbranch.blocks.border import BorderedPointwise
from unbranch.blocks.bottleneck import Bottleneck
from unbranch.blocks.depthwise import Mixer
from unbranch.blocks.edge import ScaledFilter
from unbranch.blocks.implicit import Implied
from unbranch.blocks.orepa import Squeezed
from unbranch.blocks.shortcuts import FixedConv

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LARGEST = 31
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@dataclass(frozen=True)
class Sketch:
    """The layers of each branch, in running order, and those behind the sum; ``joint`` says what is summed where it is no map."""

    rows: tuple[tuple[str, ...], ...]
    after: tuple[str, ...] = ()
    joint: str = ""


def layers_of(branch: nn.Module) -> list[str]:
    """The layers of a branch by short names, in running order; paddings go with the convolution behind them.

    Example:
        >>> layers_of(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)))
        ['3x3', 'norm']
    """
    if isinstance(branch, nn.Sequential | Bottleneck):
        return [name for layer in branch.children() for name in layers_of(layer)]
    if isinstance(branch, BorderedPointwise):
        return [*layers_of(branch.pointwise), "filled border"]
    if isinstance(branch, CONVOLUTIONS):
        taps = "x".join(map(str, branch.kernel_size))
        return [f"{taps}, dilated {branch.dilation[0]}" if branch.dilation[0] > 1 else taps]
    if isinstance(branch, POOLS):
        return ["mean"]
    if isinstance(branch, nn.modules.batchnorm._BatchNorm):
        return ["norm"]
    if isinstance(branch, ScaledFilter):
        return ["fixed filter", "scale"]
    if isinstance(branch, FixedConv):
        return ["channel map"]
    name = type(branch).__name__
    return [] if isinstance(branch, nn.Identity) or "Pad" in name else [name]


@singledispatch
def sketch(branches: nn.Module) -> Sketch:
    """What a block's branches are.

    Raises:
        TypeError: a kind of `Branches` that nobody described.
    """
    raise TypeError(f"nobody said what {type(branches).__name__} looks like: register it with sketch")


@sketch.register
def _(branches: Sum) -> Sketch:
    parts = [branches.get_submodule(name) for name in branches.names]
    rows = tuple(
        ("squeezed kernel", "norm") if isinstance(part, Squeezed) else tuple(layers_of(part))
        for part in parts
    )
    return Sketch(rows, tuple(layers_of(branches.norm)))


@sketch.register
def _(branches: Squeezed) -> Sketch:
    kernel = "x".join(map(str, branches.spec.kernel))
    rows = ((kernel, "scale"), ("1x1", "scale"), ("1x1", kernel, "scale"), ("1x1", "mean", "scale"))
    return Sketch(rows, (f"one {kernel}", *layers_of(branches.norm)), "kernels")


@sketch.register
def _(branches: Mixer) -> Sketch:
    mixed = sketch(branches.mix)
    return Sketch((*((*row, "scale") for row in mixed.rows), (*layers_of(branches.norm), "− scale"), ()))


@sketch.register
def _(branches: Implied) -> Sketch:
    return Sketch((("+ a", *layers_of(branches.conv), "· m"),))


def in_words(described: Sketch) -> str:
    """The sketch in a line.

    Example:
        >>> in_words(Sketch((("3x3", "norm"), ("norm",), ()), ("norm",)))
        '3x3 → norm + x → norm + x, then norm'
    """
    starts = [row if row and row[0] != "norm" else ("x", *row) for row in described.rows]
    after = f", then {' → '.join(described.after)}" if described.after else ""
    return " + ".join(" → ".join(row) for row in starts) + after


def sketched(recipes: Mapping[str, Callable[[ConvSpec], Branches]]) -> dict[str, str]:
    """What each recipe makes of a convolution that keeps its channels, 3x3 or the smallest that it takes, in a line."""
    return {name: _described(make) for name, make in recipes.items()}


def _described(make: Callable[[ConvSpec], Branches], taps: int = 3) -> str:
    """The recipe at its smallest kernel.

    Raises:
        ValueError: it takes none.
    """
    try:
        return in_words(sketch(make(ConvSpec.of(8, 8, taps))))
    except ValueError:
        if taps >= LARGEST:
            raise
    return _described(make, taps + 2)
