"""Our own detector checkpoints: safetensors whose metadata say how to build the network again."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unbranch.checkpoints import LoadResult, load
from unbranch.detect.errors import InputError
from unbranch.detect.files import replacing
from unbranch.detect.forms import form_of, take_form
from unbranch.models.yolo import YOLO, build, describe, families
from unbranch.models.yolo.families import family_of
from unbranch.models.yolov5 import YOLOv5
from unbranch.models.yolov5.backbones import ClassifierBackbone

FORMAT = "unbranch-"
VERSION = 1


def save(model: YOLO[Any], path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
    """Write a network's weights, with its description (layout, names, anchors) and form as JSON in the
    metadata.

    `extra` is plain data of the caller's own (`load_extra` gives it back). The file is written beside `path`
    under another name, then moved there, so a full disk or a kill leaves the old one whole. Raises
    `InputError` where it cannot be written.
    """
    form = form_of(model)
    if form == "mixed":
        raise InputError(
            f"{path}: some blocks of the network are folded and others are not: fuse() folds the rest"
        )
    about = {
        "format": FORMAT + family_of(model.description.network).name,
        "version": VERSION,
        "form": "train" if form == "training" else form,
        "stride": [float(s) for s in model.description.strides],
        "description": model.description.to_dict(),
        "extra": dict(extra or {}),
    }
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    target = Path(path)
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    with replacing(target) as part:
        try:
            save_file(state, part, metadata)
        except SafetensorError as error:
            raise InputError(f"{target}: cannot be written: {error}") from error


def load_model(path: str | os.PathLike[str]) -> YOLO[Any]:
    """The network that `save` wrote, in eval mode, in the form (as built, expanded, folded) and the dtype that it was saved in.

    Raises `InputError` for a missing or damaged file, one that is not ours, and weights that do not fit their
    description.
    """
    about, state = _read(Path(path))
    try:
        model = build(describe(about["description"])).eval()
        take_form(model, state, str(path))
        floating = {value.dtype for value in state.values() if value.is_floating_point()}
        if len(floating) == 1:
            model.to(floating.pop())
        model.load_state_dict(state)
    except InputError:
        raise
    except (ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"{path}: its weights do not fit its description: {' '.join(str(error).split())[:300]}"
        ) from error
    return model


def load_extra(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The caller's own data that `save` was given."""
    return dict(_read(Path(path))[0]["extra"])


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    if file.suffix != ".safetensors":
        hint = f"; import it first: unbranch import {file}" if file.suffix in (".pt", ".pth") else ""
        raise InputError(f"{file}: weights of an unknown kind; .safetensors of ours are read here{hint}")
    try:
        with safe_open(str(file), "pt") as stored:
            texts = stored.metadata() or {}
            state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: not a whole safetensors file: {error}") from error
    if texts.get("format") not in [FORMAT + family.name for family in families()]:
        raise InputError(
            f"{file}: not a detector of ours; for an original YOLOv5 checkpoint: unbranch import {file}"
        )
    try:
        about = {
            "form": texts["form"],
            **{key: json.loads(texts[key]) for key in ("version", "description", "extra")},
        }
    except (KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: its metadata are damaged: {error}") from error
    if about["version"] != VERSION:
        raise InputError(
            f"{file}: written by another version of this format, {about['version']}; {VERSION} is read"
        )
    return about, state


def load_backbone(model: YOLO[Any], path: str | os.PathLike[str]) -> LoadResult:
    """Fill the classification backbone of a detector from that classifier's checkpoint; its head is left over.

    Names and forms are those of `unbranch.checkpoints.load`, which says what it raises. Raises `InputError` where the
    detector's backbone is no classification network.
    """
    if not isinstance(model, YOLOv5) or not isinstance(model.backbone, ClassifierBackbone):
        raise InputError(
            f"{path}: no place for it, the backbone is the detector's own; build a YOLOv5 with "
            "backbone='mobileone_s0', say"
        )
    return load(model.backbone.network, path, reinit=["head"])
