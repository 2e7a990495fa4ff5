"""YOLOv5 checkpoints as their original code writes them, turned into our network.

Nothing in the file is executed (see `unbranch.detect.archive`). The layout is read off the weights, then held
against everything that the file says of its layers: kernel sizes, strides, groups, norms, activations, and
which layer feeds which. What is not the layout of release 6 or 7 is refused, with the place.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unbranch.detect.archive import read_archive
from unbranch.detect.errors import InputError
from unbranch.detect.original_layout import Layout, Original
from unbranch.detect.pickles import Record
from unbranch.models.yolov5 import Bottleneck, YOLOv5, yolov5

DEEPEST = 32


def import_original(path: str | os.PathLike[str]) -> YOLOv5:
    """The network of an original checkpoint, in eval mode and float32, its anchors in pixels and its class
    names kept.

    Reads a `.pt` (the averaged weights where there are any) and a `.safetensors` of the same tensors. Any
    number of classes, any of n, s, m, l, x, three levels or four. Raises `InputError` for whatever is not
    that, with the place.
    """
    file = Path(path)
    original = _from_safetensors(file) if file.suffix == ".safetensors" else _from_archive(file)
    if not original.tensors:
        raise InputError(f"{file}: holds no weights")
    layout = Layout.of(original)
    network = yolov5(layout.description(original)).eval()
    _check_layers(original, layout, network)
    _load(original, layout, network)
    return network


def _from_archive(file: Path) -> Original:
    content = read_archive(file)
    original = Original(str(file))
    holder = content
    if isinstance(content, Mapping):
        holder = content.get("ema") or content.get("model") or content.get("state_dict") or content
    if isinstance(holder, Mapping):
        original.tensors = {str(key): value for key, value in holder.items() if isinstance(value, Tensor)}
        return original
    if not isinstance(holder, Record):
        raise InputError(f"{file}: holds a {type(holder).__name__}, not a YOLOv5 network")
    for name, record in _modules(holder, str(file)):
        original.layers[name] = record
        for kind in ("_parameters", "_buffers"):
            for key, value in _mapping(record, kind, str(file)).items():
                if isinstance(value, Tensor):
                    original.tensors[f"{name}.{key}".lstrip(".")] = value
    original.names = holder.attributes.get("names")
    strides = holder.attributes.get("stride")
    original.strides = strides.tolist() if isinstance(strides, Tensor) else None
    return original


def _from_safetensors(file: Path) -> Original:
    original = Original(str(file))
    try:
        with safe_open(str(file), "pt") as stored:
            original.tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            about = stored.metadata() or {}
        original.names = json.loads(about["names"]) if "names" in about else None
        original.strides = json.loads(about["stride"]) if "stride" in about else None
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    return original


def _mapping(record: Record, key: str, where: str) -> Mapping[str, Any]:
    value = record.attributes.get(key, {})
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {record.kind} has no {key} where a network has them")
    return value


def _modules(root: Record, where: str) -> Iterator[tuple[str, Record]]:
    """Every module's dotted name and record; a module inside itself or in two places is refused."""
    seen: set[int] = set()
    waiting = [("", root)]
    while waiting:
        name, record = waiting.pop()
        if id(record) in seen or name.count(".") > DEEPEST:
            raise InputError(
                f"{where}: module {name} ({record.kind}) stands in two places; no YOLOv5 is built so"
            )
        seen.add(id(record))
        yield name, record
        for key, child in _mapping(record, "_modules", where).items():
            if isinstance(child, Record):
                waiting.append((f"{name}.{key}".lstrip("."), child))


Values: TypeAlias = Mapping[str, Any]

# The attributes of a stored layer that decide what it computes, and ours to hold them against.
_COMPARED: Mapping[str, tuple[type[nn.Module], Callable[[Any], Values]]] = {
    "Conv2d": (
        nn.Conv2d,
        lambda m: {
            "kernel_size": m.kernel_size,
            "stride": m.stride,
            "padding": m.padding,
            "dilation": m.dilation,
            "groups": m.groups,
            "padding_mode": m.padding_mode,
        },
    ),
    "BatchNorm2d": (nn.BatchNorm2d, lambda m: {"eps": m.eps, "affine": m.affine}),
    "MaxPool2d": (
        nn.MaxPool2d,
        lambda m: {"kernel_size": m.kernel_size, "stride": m.stride, "padding": m.padding},
    ),
    "Bottleneck": (Bottleneck, lambda m: {"add": m.residual}),
}
_ROUTED: Mapping[str, Values] = {"Upsample": {"scale_factor": 2.0, "mode": "nearest"}, "Concat": {"d": 1}}


def _check_layers(original: Original, layout: Layout, network: YOLOv5) -> None:
    """Hold every stored layer against ours; nothing is checked where the file holds tensors only."""
    modules = dict(network.named_modules())
    for name, record in original.layers.items():
        kind = record.kind.name
        if kind in _COMPARED:
            expected, values = _COMPARED[kind]
            ours = modules.get(layout.ours(name) or "")
            if not isinstance(ours, expected):
                raise InputError(
                    f"{original.where}: {name} is a {kind}, which the layout of release 6 and 7 has not there"
                )
            _agree(original, name, record, values(ours))
        elif kind in _ROUTED:
            _agree(original, name, record, _ROUTED[kind])
        if name.count(".") == 1 and name.startswith("model."):
            number = int(name.removeprefix("model."))
            _agree(original, name, record, {"f": layout.sources.get(number, -1)})


def _agree(original: Original, name: str, record: Record, values: Values) -> None:
    for key, value in values.items():
        if key in record.attributes and record.attributes[key] != value:
            raise InputError(
                f"{original.where}: {name} ({record.kind}) has {key} {record.attributes[key]!r}; the layout "
                f"of release 6 and 7 has {value!r}"
            )


def _load(original: Original, layout: Layout, network: YOLOv5) -> None:
    """Copy the weights into the network, folding it first where the file's norms are folded already."""
    folded = not any(".bn." in key for key in original.tensors)
    if folded:
        network.fuse()
    state: dict[str, Tensor] = {"detect.anchors": network.detect.anchors}
    unknown: list[str] = []
    for key, value in original.tensors.items():
        ours = layout.ours(key)
        if ours is not None:
            state[ours.replace("branches.dense.0.", "branches.") if folded else ours] = value
        elif not key.startswith((f"model.{layout.last}.anchor", f"model.{layout.last}.stride")):
            unknown.append(key)
    expected = network.state_dict()
    missing = [key for key in expected if key not in state]
    wrong = [key for key in state if key in expected and state[key].shape != expected[key].shape]
    surplus = unknown + [key for key in state if key not in expected]
    for what, keys in (("lacks", missing), ("has no place for", surplus), ("has other shapes for", wrong)):
        if keys:
            raise InputError(f"{original.where}: {what} {len(keys)} weights, the first {keys[0]}")
    network.load_state_dict(state)
