"""YOLOv7's networks by name: their layers, the maps the head reads, and the anchors (Wang et al., CVPR 2023)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unbranch.models.yolo.data import ANCHORS_FOUR, ANCHORS_THREE, Levels
from unbranch.models.yolo.recipes import PLAIN, BlockChoice
from unbranch.models.yolov7.plan import IMAGE, Layer

ANCHORS_YOLOV7: Levels = (
    ((12.0, 16.0), (19.0, 36.0), (40.0, 28.0)),
    ((36.0, 75.0), (76.0, 55.0), (72.0, 146.0)),
    ((142.0, 110.0), (192.0, 243.0), (459.0, 401.0)),
)


@dataclass(frozen=True)
class Layout:
    """A network's layers in running order, what its head reads, and what it has where nothing is said."""

    layers: Sequence[Layer]
    outputs: Sequence[str]
    anchors: Levels
    auxiliary: Sequence[str] = ()
    activation: str = "silu"
    head_block: BlockChoice = PLAIN


def _conv(name: str, source: str, channels: int, kernel: int = 1, stride: int = 1) -> Layer:
    return Layer(name, "conv", (source,), channels, {"kernel": kernel, "stride": stride})


def _block(name: str, source: str, channels: int) -> Layer:
    return Layer(name, "block", (source,), channels)


def _elan(name: str, source: str, width: int, channels: int) -> Layer:
    """The backbone's: four layers of the full width, every second joined."""
    return Layer(name, "elan", (source,), channels, {"width": width, "inner": width, "dense": False})


def _elan_neck(name: str, source: str, channels: int) -> Layer:
    """The neck's: four layers of half the width, all joined."""
    return Layer(name, "elan", (source,), channels, {"width": channels, "inner": channels // 2})


def _elan_tiny(name: str, source: str, channels: int) -> Layer:
    """Tiny's: two layers of half the channels, all joined."""
    half = channels // 2
    return Layer(name, "elan", (source,), channels, {"width": half, "inner": half, "depth": 2})


def _shrink(name: str, sources: tuple[str, ...], channels: int, pooled: bool = False) -> Layer:
    return Layer(name, "shrink", sources, channels, {"pooled": pooled})


def _join(name: str, coarse: str, fine: str, channels: int) -> Layer:
    return Layer(name, "join", (coarse, fine), channels)


_TINY = Layout(
    layers=(
        _conv("stem1", IMAGE, 32, 3, 2),
        _conv("stem2", "stem1", 64, 3, 2),
        _elan_tiny("stage1", "stem2", 64),
        Layer("pool2", "maxpool", ("stage1",)),
        _elan_tiny("stage2", "pool2", 128),
        Layer("pool3", "maxpool", ("stage2",)),
        _elan_tiny("stage3", "pool3", 256),
        Layer("pool4", "maxpool", ("stage3",)),
        _elan_tiny("stage4", "pool4", 512),
        Layer("spp", "spp", ("stage4",), 256, {"light": True}),
        _join("join1", "spp", "stage3", 128),
        _elan_tiny("neck1", "join1", 128),
        _join("join2", "neck1", "stage2", 64),
        _elan_tiny("neck2", "join2", 64),
        _shrink("down1", ("neck2", "neck1"), 128),
        _elan_tiny("neck3", "down1", 128),
        _shrink("down2", ("neck3", "spp"), 256),
        _elan_tiny("neck4", "down2", 256),
        _block("out1", "neck2", 128),
        _block("out2", "neck3", 256),
        _block("out3", "neck4", 512),
    ),
    outputs=("out1", "out2", "out3"),
    anchors=ANCHORS_THREE,
    activation="leaky_relu_0.1",
)

_BASE = Layout(
    layers=(
        _conv("stem1", IMAGE, 32, 3),
        _conv("stem2", "stem1", 64, 3, 2),
        _conv("stem3", "stem2", 64, 3),
        _conv("stem4", "stem3", 128, 3, 2),
        _elan("stage1", "stem4", 64, 256),
        _shrink("shrink2", ("stage1",), 256, pooled=True),
        _elan("stage2", "shrink2", 128, 512),
        _shrink("shrink3", ("stage2",), 512, pooled=True),
        _elan("stage3", "shrink3", 256, 1024),
        _shrink("shrink4", ("stage3",), 1024, pooled=True),
        _elan("stage4", "shrink4", 256, 1024),
        Layer("spp", "spp", ("stage4",), 512),
        _join("join1", "spp", "stage3", 256),
        _elan_neck("neck1", "join1", 256),
        _join("join2", "neck1", "stage2", 128),
        _elan_neck("neck2", "join2", 128),
        _shrink("down1", ("neck2", "neck1"), 256, pooled=True),
        _elan_neck("neck3", "down1", 256),
        _shrink("down2", ("neck3", "spp"), 512, pooled=True),
        _elan_neck("neck4", "down2", 512),
        _block("out1", "neck2", 256),
        _block("out2", "neck3", 512),
        _block("out3", "neck4", 1024),
    ),
    outputs=("out1", "out2", "out3"),
    anchors=ANCHORS_YOLOV7,
    head_block=BlockChoice("repconv"),
)

_W6 = Layout(
    layers=(
        Layer("reorg", "reorg", (IMAGE,)),
        _conv("stem", "reorg", 64, 3),
        _conv("shrink1", "stem", 128, 3, 2),
        _elan("stage1", "shrink1", 64, 128),
        _conv("shrink2", "stage1", 256, 3, 2),
        _elan("stage2", "shrink2", 128, 256),
        _conv("shrink3", "stage2", 512, 3, 2),
        _elan("stage3", "shrink3", 256, 512),
        _conv("shrink4", "stage3", 768, 3, 2),
        _elan("stage4", "shrink4", 384, 768),
        _conv("shrink5", "stage4", 1024, 3, 2),
        _elan("stage5", "shrink5", 512, 1024),
        Layer("spp", "spp", ("stage5",), 512),
        _join("join1", "spp", "stage4", 384),
        _elan_neck("neck1", "join1", 384),
        _join("join2", "neck1", "stage3", 256),
        _elan_neck("neck2", "join2", 256),
        _join("join3", "neck2", "stage2", 128),
        _elan_neck("neck3", "join3", 128),
        _shrink("down1", ("neck3", "neck2"), 256),
        _elan_neck("neck4", "down1", 256),
        _shrink("down2", ("neck4", "neck1"), 384),
        _elan_neck("neck5", "down2", 384),
        _shrink("down3", ("neck5", "spp"), 512),
        _elan_neck("neck6", "down3", 512),
        _block("out1", "neck3", 256),
        _block("out2", "neck4", 512),
        _block("out3", "neck5", 768),
        _block("out4", "neck6", 1024),
        _block("teach1", "neck3", 320),
        _block("teach2", "neck2", 640),
        _block("teach3", "neck1", 960),
        _block("teach4", "spp", 1280),
    ),
    outputs=("out1", "out2", "out3", "out4"),
    anchors=ANCHORS_FOUR,
    auxiliary=("teach1", "teach2", "teach3", "teach4"),
)

NETWORKS: Mapping[str, Layout] = {"yolov7-tiny": _TINY, "yolov7": _BASE, "yolov7-w6": _W6}
