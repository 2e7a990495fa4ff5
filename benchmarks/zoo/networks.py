"""Which networks there are, found by program, and how each library makes one.

timm and torchvision: the smallest member of every architecture family, as the builders' names and modules tell them apart, where it
has convolutions beside a patch embedding; of torchvision every segmentation and detection network too. ultralytics: every description
that it ships, at its smallest scale. Ours: all. The list is kept in networks.json; `find` makes it anew.
"""

import json
import math
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.proxy import TraceError

from tests.support import norms, randomize_norms

LIST = Path(__file__).with_name("networks.json")
FEWEST_CONVOLUTIONS = 3
"""A vision transformer has one, of its patches: nothing there is for folding."""

OUR_DETECTORS: dict[str, Any] = {
    "yolov5n": {},
    "yolov5n_with_repvgg": {"block": "repvgg", "bottleneck": "3x3-3x3"},
    "yolov5n_on_repvgg_a0": {"backbone": "repvgg_a0"},
}

SMALLEST = 192
"""The shorter side, in pixels, to which torchvision's detectors are told to resize."""

PROPOSALS = 50
"""That their heads look at."""

GAIN = 0.5
"""Of the norms' drawn weights. Each norm multiplies the rounding error of what comes before; with weights near 1 a deep network
with random weights is chaotic, and float32 says nothing about it."""

SETTINGS = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "YOLO_CONFIG_DIR": str(Path(__file__).parents[2] / ".cache" / "ultralytics"),
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
}
"""ultralytics would otherwise install packages and write into the home directory."""

os.environ.update({key: os.environ.get(key, value) for key, value in SETTINGS.items()})
Path(os.environ["YOLO_CONFIG_DIR"]).mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Network:
    """One row's network. `size` is None where small inputs do, else the one side that it takes."""

    library: str
    name: str
    family: str
    parameters: int
    size: int | None = None

    @property
    def key(self) -> str:
        """Unique, and a file's stem."""
        return f"{self.library}-{self.name}"


@dataclass(frozen=True)
class Made:
    """A network in eval mode with its inputs; `watched` modules are compared in place of outputs that a search orders."""

    model: nn.Module
    inputs: tuple[Any, ...]
    others: tuple[Any, ...] | None
    watched: tuple[str, ...] = ()


def family_of(name: str) -> str:
    """The first word of a name, without the port's: tf_efficientnet_b0 is of efficientnet."""
    found = re.match(r"(?:tf_)?([a-z]+)", name)
    return found[1] if found else name


def known() -> list[Network]:
    """The kept list."""
    return [Network(**row) for row in json.loads(LIST.read_text(encoding="utf-8"))]


def find() -> list[Network]:
    """Go through the libraries and keep the list."""
    warnings.simplefilter("ignore")
    found = [*_ours(), *_timm(), *_torchvision(), *_ultralytics()]
    rows = ",\n".join(json.dumps(asdict(network)) for network in found)
    LIST.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    return found


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _convolutional(model: nn.Module) -> bool:
    kinds = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    return sum(isinstance(m, kinds) for m in model.modules()) >= FEWEST_CONVOLUTIONS


def _smallest(members: dict[tuple[str, str], list[tuple[int, str]]]) -> Iterator[tuple[str, str, int]]:
    for (_, family), some in sorted(members.items(), key=lambda item: item[0][::-1]):
        parameters, name = min(some)
        yield family, name, parameters


def _ours() -> Iterator[Network]:
    from unbranch import models

    smallest: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for name in models.names():
        with torch.device("meta"):
            smallest["ours", name].append((_count(models.create(name)), name))
    for family, name, parameters in _smallest(smallest):
        yield Network("unbranch", name, family, parameters)
    for name in OUR_DETECTORS:
        yield Network("unbranch", name, "yolov5", _count(_our_model(name)))


def _timm() -> Iterator[Network]:
    import timm

    members: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    fixed: dict[str, int] = {}
    for name in timm.list_models():
        if name.startswith("test_"):
            continue
        module = timm.models.model_entrypoint(name).__module__
        try:
            with torch.device("meta"):
                model: Any = timm.create_model(name)
        except (RuntimeError, NotImplementedError):  # some look at their weights while they are made
            model = timm.create_model(name)
        if _convolutional(model):
            members[module, family_of(name)].append((_count(model), name))
            if model.pretrained_cfg.get("fixed_input_size"):
                fixed[name] = model.pretrained_cfg["input_size"][-1]
    for family, name, parameters in _smallest(members):
        yield Network("timm", name, family, parameters, fixed.get(name))


def _torchvision() -> Iterator[Network]:
    import torchvision

    members: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for part in (torchvision.models, torchvision.models.segmentation, torchvision.models.detection):
        for name in torchvision.models.list_models(module=part):
            model = _torchvision_model(name)
            if _convolutional(model):
                family = family_of(name) if part is torchvision.models else name
                builder = torchvision.models.get_model_builder(name).__module__
                members[builder, family].append((_count(model), name))
    for family, name, parameters in _smallest(members):
        yield Network("torchvision", name, family, parameters)


def _ultralytics() -> Iterator[Network]:
    import ultralytics

    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    for path in sorted(folder.rglob("*.yaml")):
        model = _ultralytics_model(path.stem)
        yield Network("ultralytics", path.stem, path.parent.name, _count(model))


def _torchvision_model(name: str) -> nn.Module:
    import torchvision

    options: dict[str, Any] = {"weights": None}
    if name in torchvision.models.list_models(module=torchvision.models.detection):
        options |= {"weights_backbone": None, "num_classes": 5}
    elif name in torchvision.models.list_models(module=torchvision.models.segmentation):
        options |= {"weights_backbone": None}
    elif name in ("googlenet", "inception_v3"):
        options |= {"init_weights": True}
    return torchvision.models.get_model(name, **options)


def _ultralytics_model(stem: str) -> nn.Module:
    import ultralytics
    import yaml

    kind = ultralytics.RTDETR if "rtdetr" in stem else ultralytics.YOLO
    path = next((Path(ultralytics.__file__).parent / "cfg" / "models").rglob(f"{stem}.yaml"))
    text = path.read_text(encoding="utf-8")
    if "DEFAULT" not in text:
        model: Any = kind(path.name)
        return model.model
    with TemporaryDirectory() as folder:  # one asks torchvision for trained weights, which would be fetched
        description = yaml.safe_load(text.replace("DEFAULT", "null"))
        changed = Path(folder) / path.name
        changed.write_text(yaml.safe_dump(description), encoding="utf-8")
        model = kind(str(changed))
    return model.model


@torch.no_grad()
def make(network: Network, side: int | None = None) -> Made:
    """The network with random weights and BN statistics, at a small size, or at `side` pixels where it takes them."""
    torch.manual_seed(0)
    model = _model(network).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if _is_detector(model) and not network.name.startswith("ssd"):
        resizing: Any = model.get_submodule("transform")
        # Or it enlarges every picture to 800 pixels, and looks at 1000 proposals.
        resizing.min_size, resizing.max_size = (SMALLEST,), 2 * SMALLEST
        if "rpn" in dict(model.named_children()):
            proposing: Any = model.get_submodule("rpn")
            proposing._post_nms_top_n["testing"] = PROPOSALS
    generator = torch.Generator().manual_seed(0)
    for size in _sides(network, model, side):
        inputs = _inputs(network, (size, size), generator)
        if _runs(model, inputs):
            break
    else:
        raise RuntimeError("no size was found that it takes")
    try:
        randomize_norms(model, generator, *inputs)
    except (IndexError, RuntimeError):
        randomize_norms(model, generator)
    for norm in norms(model):
        scale = dict(norm.named_parameters()).get("weight")
        if scale is not None:
            scale.mul_(GAIN)
    other = _inputs(network, (size, size + 32), generator, 2)
    watched = ()
    if network.library == "torchvision" and _is_detector(model):
        watched = ("backbone", "rpn.head") if "rpn" in dict(model.named_children()) else ("backbone", "head")
    return Made(model, inputs, other if network.size is None and _runs(model, other) else None, watched)


def _model(network: Network) -> nn.Module:
    if network.library == "timm":
        import timm

        return timm.create_model(network.name)
    if network.library == "torchvision":
        return _torchvision_model(network.name)
    if network.library == "ultralytics":
        return _ultralytics_model(network.name)
    return _our_model(network.name)


def _our_model(name: str) -> nn.Module:
    from unbranch import models
    from unbranch.models.yolov5 import yolov5

    return yolov5("yolov5n", **OUR_DETECTORS[name]) if name in OUR_DETECTORS else models.create(name)


def _is_detector(model: nn.Module) -> bool:
    return "transform" in dict(model.named_children())


def _sides(network: Network, model: nn.Module, side: int | None) -> list[int]:
    if network.size is not None:
        return [network.size]
    own = (vars(model).get("pretrained_cfg") or {}).get("input_size", (3, 224, 224))[-1]
    small = 128 if network.library == "ultralytics" or _is_detector(model) else 96
    return [*([side] if side else []), small, 128, 192, 224, 256, 320, own]


def _inputs(
    network: Network, size: tuple[int, int], generator: torch.Generator, batch: int = 1
) -> tuple[Any, ...]:
    x = torch.rand((batch, 3, *size), generator=generator)
    if network.library == "torchvision" and network.name.startswith(
        ("fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet", "fcos", "ssd")
    ):
        return (list(x),)
    return (x,)


def _runs(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    try:
        model(*inputs)
    except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError):
        return False
    return True


def first_tensor(inputs: tuple[Any, ...]) -> Tensor:
    """The picture, or the first of a list."""
    return inputs[0] if isinstance(inputs[0], Tensor) else inputs[0][0]


def shape_of(inputs: tuple[Any, ...]) -> str:
    """Such as 1x3x96x96."""
    x = first_tensor(inputs)
    return "x".join(map(str, x.shape if x.dim() == 4 else (len(inputs[0]), *x.shape)))


def mapped(inputs: tuple[Any, ...], change: Any) -> tuple[Any, ...]:
    """`change` of every tensor."""
    return tuple([change(t) for t in x] if isinstance(x, list) else change(x) for x in inputs)


def theirs(network: Network, model: nn.Module) -> nn.Module | None:
    """Fused by its library's own code, in place; None where it has none for this network.

    timm: reparameterize_model. ultralytics: fuse. torchvision has none: torch's own fx fusing stands in, where it can trace.
    """
    if network.library == "timm":
        from timm.utils.model import reparameterize_model

        return reparameterize_model(model, inplace=True)
    if network.library == "ultralytics":
        fusable: Any = model
        return fusable.fuse(verbose=False)
    if network.library == "torchvision":
        from torch.fx.experimental.optimization import fuse

        try:
            return fuse(model)
        except (TraceError, TypeError, RuntimeError, ValueError, KeyError, AttributeError):
            return None
    return None


def size_in_mib(model: nn.Module) -> float:
    """Of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())) / math.pow(
        2, 20
    )
