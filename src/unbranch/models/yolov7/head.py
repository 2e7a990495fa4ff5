"""YOLOv7's heads: implicit knowledge around the 1x1 of each level, and coarser teachers beside them."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks.implicit import ImplicitConv
from unbranch.models.yolo.data import AnchorLists
from unbranch.models.yolo.head import Detect, RawMap


class IDetect(Detect):
    """`Detect` whose levels are y = m · (w * (x + a) + b); `fuse()` leaves one 1x1 convolution each.

    >>> head = IDetect([16, 32], [[(10, 13)], [(30, 61)]], strides=[8, 16], num_classes=3).eval().fuse()
    >>> head([torch.ones(1, 16, 4, 6), torch.ones(1, 32, 2, 3)]).shape
    torch.Size([1, 30, 8])
    """

    def level(self, in_channels: int, out_channels: int) -> nn.Module:
        """A 1x1 with implicit knowledge around it."""
        return ImplicitConv(in_channels, out_channels)

    def fuse(self) -> "IDetect":
        """Each level becomes one 1x1 convolution, in place; a second call does nothing. Returns the head."""
        self.switch_to_deploy()
        return self


class IAuxDetect(IDetect):
    """`IDetect` with a plain 1x1 for each of the `auxiliary_channels`, whose maps teach in training alone.

    Features: those of the levels, and behind them those of the auxiliary levels, which have the same strides
    and anchors. In training mode the raw maps of all come out in that order; in eval mode the boxes of the
    levels. `fuse()` drops the auxiliary levels.

    >>> head = IAuxDetect([16], [24], [[(10, 13)]], strides=[8], num_classes=3)
    >>> len(head([torch.ones(1, 16, 4, 6), torch.ones(1, 24, 4, 6)]))
    2
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        auxiliary_channels: Sequence[int],
        anchors: AnchorLists,
        strides: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__(in_channels, anchors, strides, num_classes)
        if len(auxiliary_channels) != len(in_channels):
            raise ValueError(f"{len(auxiliary_channels)} auxiliary levels beside {len(in_channels)} levels")
        values = self.num_anchors * self.num_values
        self.auxiliary: nn.Module = nn.ModuleList(nn.Conv2d(c, values, 1) for c in auxiliary_channels)
        self.start_biases(self.auxiliary, strides)

    def deploy_children(self) -> dict[str, nn.Module]:
        """No auxiliary levels: they only teach."""
        return {"auxiliary": nn.ModuleList()} if list(self.auxiliary.children()) else {}

    def raw(self, features: Sequence[Float[Tensor, "n _ _ _"]]) -> list[RawMap]:
        """The logits of each level, in training mode the auxiliary levels' behind them."""
        maps = super().raw(features[: len(self.maps)])
        teachers = list(self.auxiliary.children())
        if self.training and teachers:
            extra = zip(teachers, features[len(self.maps) :], strict=True)
            maps += [self.arranged(layer(x)) for layer, x in extra]
        return maps
