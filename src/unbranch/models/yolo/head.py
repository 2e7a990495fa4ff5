"""The anchor-based head: raw maps in training, boxes in pixels in eval mode."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbranch.blocks import Deployable
from unbranch.models.yolo.data import AnchorLists

RawMap: TypeAlias = Float[Tensor, "n anchors _rows _columns values"]

OBJECTS_IN_A_PICTURE = 8
PICTURE_SIZE = 640
CLASS_PRIOR = 0.6
NEARLY_NONE = 1e-5


class Detect(Deployable, nn.Module):
    """A 1x1 convolution for each level; each cell of each anchor predicts x, y, w, h, objectness and the
    classes.

    With p = sigmoid(raw), cell (i, j) of a level of stride s and an anchor of (a_w, a_h) pixels:

        x = (2 p_x − ½ + j) s    y = (2 p_y − ½ + i) s    w = (2 p_w)² a_w    h = (2 p_h)² a_h

    `anchors` (levels, anchors of a level, 2) is saved with the weights; `strides` (levels,) is not. Both in
    pixels.

    >>> head = Detect([16, 32], [[(10, 13)], [(30, 61)]], strides=[8, 16], num_classes=3).eval()
    >>> head([torch.ones(1, 16, 4, 6), torch.ones(1, 32, 2, 3)]).shape
    torch.Size([1, 30, 8])
    """

    anchors: Tensor
    strides: Tensor

    def __init__(
        self,
        in_channels: Sequence[int],
        anchors: AnchorLists,
        strides: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_values = 5 + num_classes
        self.num_anchors = len(anchors[0])
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32))
        self.register_buffer("strides", torch.tensor(strides, dtype=torch.float32), persistent=False)
        self.maps = nn.ModuleList(self.level(c, self.num_anchors * self.num_values) for c in in_channels)
        self.start_biases(self.maps, strides)

    def level(self, in_channels: int, out_channels: int) -> nn.Module:
        """The layer that makes a level's map; a head of another kind makes another."""
        return nn.Conv2d(in_channels, out_channels, 1)

    def start_biases(self, maps: nn.Module, strides: Sequence[int]) -> None:
        """Start from what is known: some 8 objects in a 640-pixel picture, no class likelier than another.

        A single class is certain from the start: nothing has to be learnt about it.
        """
        biases = [parameter for name, parameter in maps.named_parameters() if name.endswith("bias")]
        for flat, stride in zip(biases, strides, strict=True):
            bias = flat.detach().view(self.num_anchors, self.num_values)
            bias[:, 4] = math.log(OBJECTS_IN_A_PICTURE / (PICTURE_SIZE / stride) ** 2)
            bias[:, 5:] = math.log(CLASS_PRIOR / max(self.num_classes - 1, NEARLY_NONE))

    def set_anchors(self, anchors: Float[Tensor, "levels anchors 2"]) -> None:
        """Put other anchors, (width, height) in pixels, in the place of these.

        Raises `ValueError` where the shape differs or a side is not positive.
        """
        if anchors.shape != self.anchors.shape:
            raise ValueError(
                f"anchors of shape {tuple(anchors.shape)}; the head has {tuple(self.anchors.shape)}"
            )
        if not bool((anchors > 0).all()):
            raise ValueError("anchors must be positive widths and heights in pixels")
        self.anchors.copy_(anchors)

    def raw(self, features: Sequence[Float[Tensor, "n _ _ _"]]) -> list[RawMap]:
        """The logits of each level, (N, anchors, rows, columns, 5 + classes)."""
        return [self.arranged(layer(x)) for layer, x in zip(self.maps, features, strict=True)]

    def arranged(self, flat: Float[Tensor, "n _ _rows _columns"]) -> RawMap:
        """(N, anchors · values, rows, columns) as (N, anchors, rows, columns, values)."""
        n, _, rows, columns = flat.shape
        return flat.view(n, self.num_anchors, self.num_values, rows, columns).permute(0, 1, 3, 4, 2)

    def decode(self, maps: Sequence[RawMap]) -> Float[Tensor, "n boxes values"]:
        """Boxes of all levels, (N, total, 5 + classes): x, y, w, h in pixels, objectness, class
        probabilities.

        Order: levels, in each its anchors, in each the rows of cells.
        """
        return torch.cat([self._decoded(level, raw) for level, raw in enumerate(maps)], dim=1)

    def _decoded(self, level: int, raw: RawMap) -> Float[Tensor, "n boxes values"]:
        n, _, rows, columns, _ = raw.shape
        stride, anchors = self.strides[level], self.anchors[level]
        p = raw.sigmoid()
        y = torch.arange(rows, dtype=raw.dtype, device=raw.device)
        x = torch.arange(columns, dtype=raw.dtype, device=raw.device)
        cells = torch.stack((x.expand(rows, columns), y[:, None].expand(rows, columns)), dim=-1)
        centre = (p[..., :2] * 2 - 0.5 + cells) * stride
        size = (p[..., 2:4] * 2) ** 2 * anchors[:, None, None]
        return torch.cat((centre, size, p[..., 4:]), dim=-1).reshape(n, -1, self.num_values)

    def forward(
        self, features: Sequence[Float[Tensor, "n _ _ _"]]
    ) -> list[RawMap] | Float[Tensor, "n boxes values"]:
        """Raw maps in training mode, decoded boxes in eval mode."""
        maps = self.raw(features)
        return maps if self.training else self.decode(maps)
