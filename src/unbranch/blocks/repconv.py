"""RepConv, YOLOv7's and YOLOv9's name for RepVGG's sum."""

from typing import Unpack

from unbranch.blocks.block import BlockOptions
from unbranch.blocks.repvgg import RepVGGBlock
from unbranch.blocks.spec import Axes


class RepConv(RepVGGBlock):
    """y = silu(norm(w_k * x) + norm(w_1 * x) + norm(x))  (Wang et al., YOLOv7, CVPR 2023, arXiv:2207.02696).

    Shapes and errors are ``RepVGGBlock``'s.

    >>> RepConv(4, 4)(torch.ones(1, 4, 7, 5)).shape
    torch.Size([1, 4, 7, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Axes = 3,
        stride: Axes = 1,
        *,
        shortcut: str | None = "auto",
        **options: Unpack[BlockOptions],
    ) -> None:
        options.setdefault("activation", "silu")
        super().__init__(in_channels, out_channels, kernel_size, stride, shortcut=shortcut, **options)


class RepConvN(RepConv):
    """``RepConv`` without the input itself: y = silu(norm(w_k * x) + norm(w_1 * x))  (Wang et al., YOLOv9, arXiv:2402.13616).

    >>> RepConvN(4, 4)(torch.ones(1, 4, 7, 5)).shape
    torch.Size([1, 4, 7, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Axes = 3,
        stride: Axes = 1,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, shortcut=None, **options)
