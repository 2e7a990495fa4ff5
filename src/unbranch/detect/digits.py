"""The demonstration: a YOLOv5 with RepVGG in its C3 learns digits on photographs, and is shipped without
branches."""

import copy
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from unbranch.detect.checkpoint import load_model, save
from unbranch.detect.data.check import Split, check_split
from unbranch.detect.data.spec import open_spec
from unbranch.detect.engines import open_engine
from unbranch.detect.errors import InputError
from unbranch.detect.evaluation import validate
from unbranch.detect.exporting import Plan, export
from unbranch.detect.files import replacing
from unbranch.detect.plots import draw_boxes, save_picture
from unbranch.detect.predict import Detector
from unbranch.detect.running import detect
from unbranch.detect.scenes import write_scenes
from unbranch.detect.training import train
from unbranch.detect.training.console import Narrator
from unbranch.detect.validation import plain_table
from unbranch.fold.certificate import Certificate
from unbranch.fold.verify import verify_modules
from unbranch.models.yolo import YOLO
from unbranch.runtimes.sessions import openvino_core

SIZE = 192
NETWORK: Mapping[str, Any] = MappingProxyType({"block": "repvgg"})
COUNTS: Mapping[str, int] = MappingProxyType({"train": 640, "val": 64, "test": 96})
RECIPE: Mapping[str, Any] = MappingProxyType({"flip_horizontal": 0.0})
"""A mirrored digit is no digit."""
EPOCHS = 30
SHOWN = 12
RUNS = 20


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found: its folder, the table's rows by name, and the certificate of the fold."""

    folder: Path
    rows: dict[str, dict[str, float]]
    certificate: Certificate


def demo(
    folder: str | Path = "runs/demo",
    seed: int = 0,
    epochs: int = EPOCHS,
    counts: Mapping[str, int] = COUNTS,
    network: Mapping[str, Any] = NETWORK,
    quiet: bool = False,
) -> DemoResult:
    """Train, validate, fold, prove equal, export, time, and detect on scenes that were held out.

    Everything lies in `folder`, anew each time: `table.md` (before and after), `scenes.jpg` and `detections/`
    to look at, `digits.safetensors`, `.onnx` and `.xml` to use, `training/` with its curves. About five
    minutes on two cores.

    Raises InputError where the folded network does not equal the trained one, and ModuleNotFoundError for an
    extra that is not installed.

    Example:
        >>> demo(epochs=1).certificate.error < 1e-5  # doctest: +SKIP
        True
    """
    out, narrator = Path(folder), Narrator(quiet)
    for name in ("scenes", "training", "detections"):
        shutil.rmtree(out / name, ignore_errors=True)
    narrator.say("drawing scenes: handwritten digits on photographs, boxes exact")
    data = write_scenes(out / "scenes", dict(counts), SIZE, seed)
    options: dict[str, Any] = {"size": SIZE, "batch": 16, "seed": seed, "epochs": epochs}
    options |= {"network": dict(network), "recipe": dict(RECIPE)}
    trained = load_model(train(data, folder=out / "training", quiet=quiet, **options).best)
    folded = copy.deepcopy(trained).fuse()
    certificate = verify_modules(trained, folded, [torch.rand(2, 3, SIZE, SIZE)], {}, None, None)
    narrator.say(str(certificate))
    if not certificate:
        raise InputError(f"the folded network does not equal the trained one (error {certificate.error:.1e})")
    save(folded, out / "digits.safetensors")
    test = check_split(open_spec(data), "test", SIZE, "ram")
    pictures = sorted((out / "scenes" / "images" / "test").glob("*.png"))
    for suffix in (".onnx", ".xml"):
        narrator.say(str(export(folded, out / f"digits{suffix}", Plan(SIZE), pictures[:4]).agreement))
    rows = {
        "before": measured(trained, test, out / "branched.onnx"),
        "after": measured(folded, test, out / "digits.onnx"),
    }
    write_table(rows, certificate, out, narrator)
    summary = detect(Detector(out / "digits.onnx", SIZE), pictures[:SHOWN], out / "detections")
    narrator.say(
        f"{sum(summary.objects.values())} digits found on {summary.pictures} scenes that were held out"
    )
    save_picture(contact_sheet(folded, test), out / "scenes.jpg")
    narrator.say(f"look at {out / 'scenes.jpg'} (found | true), {out / 'detections'} and {out / 'table.md'}")
    return DemoResult(out, rows, certificate)


def measured(network: YOLO[Any], split: Split, file: Path) -> dict[str, float]:
    """Size, accuracy on `split`, and milliseconds a picture in torch, ONNX Runtime and OpenVINO, on one
    picture.

    The network is exported as it stands to `file` where that is not there yet, so that branches stay
    branches.
    """
    metrics = validate(network, split).metrics
    picture = torch.rand(1, 3, split.size, split.size)
    if not file.exists():
        write_as_it_stands(network, picture, file)
    array = picture.numpy()
    compiled = openvino_of(file)
    onnx = open_engine(file)

    def in_torch() -> Tensor:
        with torch.inference_mode():
            return network(picture)

    return {
        "parameters": float(sum(parameter.numel() for parameter in network.parameters())),
        "convolutions": float(sum(isinstance(module, nn.Conv2d) for module in network.modules())),
        "mAP50": metrics.map50,
        "mAP50-95": metrics.map,
        "torch ms": milliseconds(in_torch),
        "ONNX Runtime ms": milliseconds(lambda: onnx.run(array)),
        "OpenVINO ms": milliseconds(lambda: compiled(array)),
    }


def write_as_it_stands(network: nn.Module, example: Tensor, file: Path) -> None:
    """An ONNX file of the network's own operations, nothing folded by us."""
    with replacing(file) as part:
        program = torch.onnx.export(network, (example,), dynamo=True, verbose=False)
        if program is None:
            raise InputError(f"{file}: torch gave no ONNX program")
        program.save(str(part))


def openvino_of(file: Path) -> Callable[[np.ndarray], Any]:
    """An ONNX file compiled by OpenVINO for one caller at a time, in single precision."""
    core = openvino_core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(str(file)), "CPU", settings)


def milliseconds(call: Callable[[], Any], runs: int = RUNS) -> float:
    """The median of `runs` calls, after one that does not count."""
    call()
    spent = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return 1000 * float(np.median(spent))


def write_table(
    rows: Mapping[str, Mapping[str, float]], certificate: Certificate, out: Path, narrator: Narrator
) -> None:
    """`table.md` and `results.json`, and the same on the terminal."""
    before, after = rows["before"], rows["after"]
    cells = [["", "branched", "folded", "ratio"]]
    for name, value in before.items():
        number = (
            "{:,.0f}" if name in ("parameters", "convolutions") else "{:.3f}" if "mAP" in name else "{:.2f}"
        )
        cells.append(
            [name, number.format(value), number.format(after[name]), f"{value / max(after[name], 1e-9):.2f}"]
        )
    narrator.say(plain_table(cells))
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|---|---:|---:|---:|")
    lines.append(f"\nThe two differ by {certificate.error:.1e} at most: max|a − b| / max(1, max|b|).")
    with replacing(out / "table.md") as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with replacing(out / "results.json") as part:
        part.write_text(
            json.dumps({**rows, "certificate": certificate.to_dict()}, indent=2) + "\n", encoding="utf-8"
        )


def contact_sheet(network: YOLO[Any], split: Split) -> Tensor:
    """Pairs of pictures, what was found on the left and what is there on the right."""
    detector = Detector(network, split.size)
    shown = []
    for held, labels in list(zip(split.held, split.labels, strict=True))[:SHOWN]:
        pixels = held.pixels()
        found = detector.boxes([np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()[:, :, ::-1])])[0]
        shown.append(draw_boxes(pixels, found[:, :4], found[:, 5].long().tolist(), split.names))
        shown.append(draw_boxes(pixels, labels.boxes, labels.classes.tolist(), split.names))
    return make_grid(shown, nrow=6)
