"""Detectors as files for other runtimes: ONNX, OpenVINO, `torch.export`; each run against torch before it
gets its name.
"""

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import cbook
from torch import Tensor, nn

from unbranch.detect.agreement import Agreement, agree
from unbranch.detect.checkpoint import load_model, save
from unbranch.detect.engines import Output, open_engine
from unbranch.detect.errors import InputError
from unbranch.detect.files import replacing
from unbranch.detect.forms import form_of
from unbranch.detect.letterbox import fill, network_input, place
from unbranch.detect.nms import USUAL, Limits
from unbranch.detect.sources import PictureFile, Source, find, read_picture
from unbranch.frontends.exported import saved
from unbranch.models.yolo import YOLO

Layout: TypeAlias = Literal["predictions", "scores"]

SUFFIXES = (".onnx", ".xml", ".pt2", ".safetensors")
WITH_SUPPRESSION = (".onnx", ".xml")
MOST_PICTURES = 8
LARGEST_BATCH = 1024
LARGEST_SIDE = 8192


@dataclass(frozen=True)
class Exported:
    """A file that was written and found to agree with torch."""

    path: Path
    agreement: Agreement
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What to write. size: the side, in pixels, or (rows, columns), of a fixed input; with `dynamic`,
    pictures' number and sides are free (multiples of the stride). layout: `"predictions"` as YOLOv5 gives
    them, or `"scores"` as later YOLOs do. nms: put the suppression into the file, with these limits (ONNX and
    OpenVINO).

    Raises `InputError` for sizes that are not positive and for suppression of the scores' layout.
    """

    size: int | tuple[int, int] = 640
    batch: int = 1
    dynamic: bool = False
    layout: Layout = "predictions"
    nms: Limits | None = None

    def __post_init__(self) -> None:
        if min(*self.sides, self.batch) < 1:
            raise InputError(f"size {self.size}, batch {self.batch}: both must be positive")
        if self.nms is not None and self.layout != "predictions":
            raise InputError("suppression inside the file goes with the layout 'predictions' only")
        if self.nms is not None and (
            self.nms.multi_label or self.nms.agnostic or self.nms.classes is not None
        ):
            raise InputError(
                "suppression inside the file is for each class, each box in its best: no other options"
            )

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def output(self) -> Output:
        """What the file gives."""
        return "detections" if self.nms is not None else self.layout


class ScoreLayout(nn.Module):
    """Predictions (N, total, 5 + classes) as (N, 4 + classes, total): score = objectness · probability."""

    def __init__(self, network: YOLO[Any]) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n values boxes"]:
        """The network's predictions, turned."""
        y = self.network(images)
        return torch.cat((y[..., :4], y[..., 5:] * y[..., 4:5]), dim=-1).transpose(1, 2)


def export(
    weights: YOLO[Any] | str | os.PathLike[str],
    target: str | os.PathLike[str],
    plan: Plan = Plan(),
    pictures: Source | Sequence[Source] | None = None,
) -> Exported:
    """Write `target` (`.onnx`, OpenVINO's `.xml`, `.pt2`, or folded weights as `.safetensors`) and return how well it agrees with torch.

    Weights in training form are folded first, as a copy. The new file is run on `pictures` (a photograph is
    at hand where none are given), and takes its name only where the outputs agree with torch's: 1e-4 of max|a
    − b| / max(1, max|b|), and the same boxes. The class names, the stride and the layout are in its metadata.

    Raises `InputError` for weights, pictures or places that cannot be used, and where the outputs do not
    agree.
    """
    file = Path(target)
    if file.suffix not in SUFFIXES:
        raise InputError(f"{file}: exports are named {', '.join(SUFFIXES)} (OpenVINO: .xml)")
    if plan.nms is not None and file.suffix not in WITH_SUPPRESSION:
        raise InputError(f"{file}: suppression goes into .onnx and .xml only")
    if plan.layout == "scores" and file.suffix == ".safetensors":
        raise InputError(f"{file}: weights have no layout of their own; scores go into exported files")
    if not isinstance(weights, YOLO) and Path(weights).resolve() == file.resolve():
        raise InputError(f"{file}: would take the place of the weights themselves; name another file")
    network, notes = _folded(weights)
    stride = network.stride
    if any(side % stride for side in plan.sides):
        raise InputError(f"size {plan.size}: both sides must be multiples of the stride, {stride}")
    inputs = _inputs(plan, stride, pictures)
    with replacing(file) as part:
        run = _write(file.suffix, inputs, network, plan, part)
        agreement = agree(run, network, inputs, plan.output, plan.nms or USUAL)
        if not agreement:
            raise InputError(f"{file}: not written, since it does not agree with torch: {agreement}")
        if file.suffix == ".xml":
            os.replace(part.with_suffix(".bin"), file.with_suffix(".bin"))
    return Exported(file, agreement, notes)


def _folded(weights: YOLO[Any] | str | os.PathLike[str]) -> tuple[YOLO[Any], tuple[str, ...]]:
    network = copy.deepcopy(weights) if isinstance(weights, YOLO) else load_model(weights)
    network = network.float().cpu().eval()
    if network.deployed:
        return network, ()
    note = f"the weights were in {form_of(network)} form; their branches and norms were folded for this file"
    return network.fuse(), (note,)


def _inputs(plan: Plan, stride: int, pictures: Source | Sequence[Source] | None) -> list[np.ndarray]:
    """Letterboxed photographs: of the fixed size and batch, or of several sizes and a batch of two where
    those are free.
    """
    found = (
        [Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))]
        if pictures is None
        else [item.path for item in find(pictures) if isinstance(item, PictureFile)]
    )
    if not found:
        raise InputError(f"{pictures}: no pictures to check the export on; videos do not serve")
    photographs = [read_picture(path) for path in found[:MOST_PICTURES]]

    def shown(pixels: np.ndarray, size: tuple[int, int], rectangular: bool) -> np.ndarray:
        height, width = pixels.shape[:2]
        box = place(height, width, size, stride, rectangular)
        return network_input(fill(pixels, box))[None]

    if not plan.dynamic:
        return [np.repeat(shown(pixels, plan.sides, False), plan.batch, axis=0) for pixels in photographs]
    half = tuple(max(side // 2 // stride, 1) * stride for side in plan.sides)
    free = [shown(pixels, plan.sides, True) for pixels in photographs]
    first = photographs[0]
    return [
        *free,
        np.concatenate(
            [shown(first, (half[0], half[1]), False), shown(first[:, ::-1], (half[0], half[1]), False)]
        ),
    ]


def _program(network: YOLO[Any], plan: Plan, inputs: list[np.ndarray]) -> torch.export.ExportedProgram:
    module = ScoreLayout(network).eval() if plan.layout == "scores" else network
    if not plan.dynamic:
        return torch.export.export(module, (torch.from_numpy(inputs[0]),), strict=False)
    stride = network.stride
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    rows = torch.export.Dim("rows", min=1, max=LARGEST_SIDE // stride)
    columns = torch.export.Dim("columns", min=1, max=LARGEST_SIDE // stride)
    # Sizes that differ from each other and from 1, or the export would take them for the same or for fixed.
    example = torch.zeros(2, 3, 3 * stride, 4 * stride)
    free = {0: batch, 2: stride * rows, 3: stride * columns}
    return torch.export.export(module, (example,), dynamic_shapes=(free,), strict=False)


def _write(
    suffix: str, inputs: list[np.ndarray], network: YOLO[Any], plan: Plan, part: Path
) -> Callable[[np.ndarray], Tensor]:
    """Write `part` and open it again: what comes back runs the file itself."""
    if suffix == ".safetensors":
        save(network, part)
        return open_engine(part).run
    program = _program(network, plan, inputs)
    about = metadata(network, plan)
    if suffix == ".pt2":
        part.write_bytes(saved(program, {"metadata.json": json.dumps(about)}))
        loaded = torch.export.load(part).module()
        return lambda images: loaded(torch.from_numpy(images)).detach()
    from unbranch.detect import exporting_onnx

    if suffix == ".onnx":
        exporting_onnx.write(program, plan.nms, about, part)
    else:
        exporting_onnx.write_openvino(program, plan.nms, about, part)
    return open_engine(part).run


def metadata(network: YOLO[Any], plan: Plan) -> Mapping[str, str]:
    """What a file says of itself: names as a literal `{0: 'person', …}`, stride, task, input size, batch, and
    its output.
    """
    limits: Mapping[str, Any] = (
        {} if plan.nms is None else {"confidence": plan.nms.confidence, "iou": plan.nms.iou}
    )
    return {
        "names": repr(dict(enumerate(network.names))),
        "stride": str(network.stride),
        "task": "detect",
        "imgsz": repr(list(plan.sides)),
        "batch": str(plan.batch),
        "dynamic": str(plan.dynamic),
        "output": plan.output,
        **{key: str(value) for key, value in limits.items()},
    }
