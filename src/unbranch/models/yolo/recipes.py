"""The convolutions of a YOLOv5: one plain layer, and the blocks that may stand where a 3x3 stood."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn

from unbranch.blocks import (
    ACBlock,
    Block,
    BlockOptions,
    ConvSpec,
    DiverseBranchBlock,
    MobileOneBlock,
    OREPABlock,
    QARepVGGBlock,
    RepConv,
    RepConvOREPA,
    RepVGGBlock,
)
from unbranch.blocks.activation import Activation
from unbranch.blocks.block import Sum

NORM_EPS = 1e-3
NORM_MOMENTUM = 0.03


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with YOLOv5's eps 1e-3 and momentum 0.03.

    >>> batch_norm(4).eps
    0.001
    """
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


def _plain(spec: ConvSpec) -> Sum:
    """One convolution and its norm, padded by (k - 1) // 2 on all sides, as YOLOv5 pads its 6x6 stem by 2."""
    convolution = nn.Conv2d(
        spec.in_channels,
        spec.out_channels,
        (spec.kernel[0], spec.kernel[1]),
        (spec.stride[0], spec.stride[1]),
        ((spec.kernel[0] - 1) // 2, (spec.kernel[1] - 1) // 2),
        groups=spec.groups,
        bias=False,
    )
    return Sum({"dense": nn.Sequential(convolution, spec.norm(spec.out_channels))})


class Conv(Block):
    """y = act(norm(w * x)): YOLOv5's layer. `switch_to_deploy()` leaves act(w' * x + b').

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)) for odd kernels.

    >>> Conv(3, 16, 6, 2)(torch.ones(1, 3, 64, 96)).shape
    torch.Size([1, 16, 32, 48])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Activation = "silu",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            _plain,
            groups=groups,
            norm=batch_norm,
            activation=activation,
        )


_SETTLED = frozenset(("norm", "dims", "activation"))

KINDS: Mapping[str, Callable[..., nn.Module]] = {
    "plain": Conv,
    "repvgg": RepVGGBlock,
    "mobileone": MobileOneBlock,
    "qarepvgg": QARepVGGBlock,
    "repconv": RepConv,
    "acnet": ACBlock,
    "dbb": DiverseBranchBlock,
    "orepa": OREPABlock,
    "repconv_orepa": RepConvOREPA,
}
"""Kinds of block by name, called with (channels in, channels out, kernel_size, activation=…, **options)."""


@dataclass(frozen=True)
class BlockChoice:
    """Which block a stage uses, and the options that it is built with, as plain data.

    >>> BlockChoice.from_plain({"kind": "mobileone", "num_branches": 4})
    BlockChoice(kind='mobileone', options=(('num_branches', 4),))
    """

    kind: str = "plain"
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def from_plain(cls, plain: Any) -> Self:
        """From a kind's name or a mapping `{"kind": name, option: value, …}`."""
        if isinstance(plain, str):
            return cls(plain)
        if not isinstance(plain, Mapping) or not all(isinstance(key, str) for key in plain):
            raise ValueError(f"block: {plain!r} is neither a kind nor a mapping with one")
        kind = plain.get("kind", "plain")
        if not isinstance(kind, str):
            raise ValueError(f"block: {kind!r} is no kind; known are {', '.join(KINDS)}")
        return cls(kind, tuple((key, v) for key, v in plain.items() if key != "kind"))

    def to_plain(self) -> str | dict[str, Any]:
        """The name alone where there are no options; `from_plain` reads it back."""
        return {"kind": self.kind, **dict(self.options)} if self.options else self.kind

    def with_shortcut(self, shortcut: str | None) -> Self:
        """The same choice with that shortcut, where it may have one and names none."""
        if shortcut is None or "shortcut" in dict(self.options) or "shortcut" not in _options_of(self.kind):
            return self
        return replace(self, options=(*self.options, ("shortcut", shortcut)))

    def build(
        self, in_channels: int, out_channels: int, activation: Activation, kernel_size: int = 3
    ) -> nn.Module:
        """The block, with YOLOv5's batch norm.

        >>> BlockChoice("repvgg").build(8, 8, "silu")(torch.ones(2, 8, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
        """
        options = dict(self.options) if self.kind == "plain" else {"norm": batch_norm, **dict(self.options)}
        return KINDS[self.kind](in_channels, out_channels, kernel_size, activation=activation, **options)


PLAIN = BlockChoice()


def _options_of(kind: str) -> tuple[str, ...]:
    """The options that a description may give a kind of block; the rest is YOLOv5's own affair."""
    if kind == "plain" or kind not in KINDS:
        return ()
    named = inspect.signature(KINDS[kind]).parameters.values()
    own = [option.name for option in named if option.kind is inspect.Parameter.KEYWORD_ONLY]
    return tuple(name for name in (*own, *BlockOptions.__annotations__) if name not in _SETTLED)


def check_block(choice: BlockChoice, stage: str, in_channels: int = 8, out_channels: int = 8) -> None:
    """Raise `ValueError`, naming the stage, where `choice` does not make a block of these channels."""
    if choice.kind not in KINDS:
        raise ValueError(f"block of {stage}: {choice.kind!r}; known kinds are {', '.join(KINDS)}")
    known = _options_of(choice.kind)
    unknown = [name for name, _ in choice.options if name not in known]
    if unknown:
        raise ValueError(
            f"block of {stage}: {choice.kind} has no option {unknown[0]!r}; {known or 'it has none'}"
        )
    if not all(isinstance(value, str | int | float | bool | None) for _, value in choice.options):
        raise ValueError(
            f"block of {stage}: {dict(choice.options)}; options are numbers, text, true, false or null"
        )
    try:
        with torch.device("meta"):
            choice.build(in_channels, out_channels, None)
    except (TypeError, ValueError) as error:
        raise ValueError(f"block of {stage}: {choice.kind} with {dict(choice.options)}: {error}") from error
