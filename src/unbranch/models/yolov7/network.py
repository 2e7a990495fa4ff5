"""YOLOv7: layers that read each other by name, and a head, built from a description."""

from typing import Unpack

from jaxtyping import Float
from torch import Tensor, nn

from unbranch.models.yolo.network import YOLO
from unbranch.models.yolo.recipes import PLAIN
from unbranch.models.yolov7.description import Departures, Description, describe
from unbranch.models.yolov7.head import IAuxDetect, IDetect
from unbranch.models.yolov7.plan import IMAGE, LAYERS, needed_for, sizes_of


class YOLOv7(YOLO[Description]):
    """An anchor-based detector of YOLOv7's layout: implicit knowledge in its head, RepConv before it, and
    auxiliary levels that teach (Wang et al., CVPR 2023, arXiv:2207.02696).

    In training mode the raw maps of each level, those of auxiliary levels behind them; in eval mode the
    decoded predictions (N, total, 5 + classes), see `YOLO`. The auxiliary levels and the layers that only they
    need stand in `auxiliary`; `fuse()` drops them with all else that only training needs.

    Training uses YOLOv5's assignment and loss, with auxiliary levels at a quarter of their weight: not the
    assignment of the paper, in which the head's own predictions choose (its "lead head guided" labels).

    >>> yolov7("yolov7-tiny", num_classes=3).eval().fuse()(torch.ones(1, 3, 64, 96)).shape
    torch.Size([1, 378, 8])
    """

    def __init__(self, description: Description) -> None:
        super().__init__(description)
        d = description
        sizes = sizes_of(d.layers)
        blocks = dict(zip(d.stage_names, d.blocks, strict=True))
        needed = needed_for(d.outputs, d.layers)
        taught = needed_for(d.auxiliary, d.layers) - needed
        self._reads = {layer.name: layer.inputs for layer in d.layers}
        self.layers, self.auxiliary = nn.ModuleDict(), nn.ModuleDict()
        for layer in d.layers:
            c_in = [sizes[name].channels for name in layer.inputs]
            block = blocks.get(layer.name, PLAIN)
            place = self.layers if layer.name in needed else self.auxiliary
            if layer.name in needed | taught:
                place[layer.name] = LAYERS[layer.kind].build(layer, c_in, block, d.activation)
        channels = [sizes[name].channels for name in d.outputs]
        if d.auxiliary:
            extra = [sizes[name].channels for name in d.auxiliary]
            self.detect = IAuxDetect(channels, extra, d.anchors, d.strides, d.num_classes)
        else:
            self.detect = IDetect(channels, d.anchors, d.strides, d.num_classes)

    def deploy_children(self) -> dict[str, nn.Module]:
        """No layers that only teach."""
        return {"auxiliary": nn.ModuleDict()} if len(self.auxiliary) else {}

    def features(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        """The maps of each level, fine to coarse; in training mode those of auxiliary levels behind them."""
        description = self._description
        teaching = self.training and len(self.detect_auxiliary) > 0
        wanted = [*description.outputs, *(description.auxiliary if teaching else ())]
        running = [*self.layers.items(), *(self.auxiliary.items() if teaching else ())]
        readers = [name for layer, _ in running for name in self._reads[layer]] + wanted
        values: dict[str, Tensor] = {IMAGE: images}
        for name, layer in running:
            reads = self._reads[name]
            values[name] = layer(*(values[read] for read in reads))
            for read in reads:
                readers.remove(read)
                if read not in readers:  # nothing reads it any more: its memory is free
                    del values[read]
        return [values[name] for name in wanted]

    @property
    def detect_auxiliary(self) -> list[nn.Module]:
        """The head's auxiliary levels; none in deploy form."""
        return list(self.detect.auxiliary.children()) if isinstance(self.detect, IAuxDetect) else []

    @property
    def deployed(self) -> bool:
        """Whether nothing is left to fold or to drop."""
        return super().deployed and not self.detect_auxiliary and not len(self.auxiliary)


def yolov7(network: str | Description = "yolov7", **options: Unpack[Departures]) -> YOLOv7:
    """A YOLOv7 by name or description, freshly initialised; options are those of `describe`.

    Raises `ValueError` naming the option and the value.

    >>> yolov7("yolov7-tiny", num_classes=2, block="mobileone").names
    ['class0', 'class1']
    """
    if isinstance(network, Description):
        if options:
            raise ValueError(
                f"options {', '.join(options)} beside a description; put them into the description"
            )
        return YOLOv7(network)
    return YOLOv7(describe(network, **options))
