"""The road: scenes, a branched detector, its folded copy, the proof, the files, the times, the pictures."""

import copy
import importlib
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from unbranch import verbs
from unbranch.demo.detection.outcome import Measured, Outcome
from unbranch.demo.detection.results import contact_sheet, markdown
from unbranch.demo.detection.scenes import write_scenes
from unbranch.demo.stages import Stage, quietly
from unbranch.demo.tables import write_results
from unbranch.deploy import Paired, export_onnx
from unbranch.deploy.bench import benchmark
from unbranch.deploy.weights import check_writable
from unbranch.detect.agreement import Agreement, agree
from unbranch.detect.checkpoint import load_model, save
from unbranch.detect.data.check import Split, check_split
from unbranch.detect.data.spec import open_spec
from unbranch.detect.evaluation import validate
from unbranch.detect.exporting import Plan, export
from unbranch.detect.letterbox import fill, network_input, place
from unbranch.detect.predict import Detector
from unbranch.detect.running import detect
from unbranch.detect.sources import read_picture
from unbranch.detect.training import train
from unbranch.models.yolo import YOLO
from unbranch.report.pictures import draw_times

SIDE, SIZE = 256, 128
"""Pixels of a scene, and of the network's input: half, so that resizing is a mean of four."""
COUNTS: Mapping[str, int] = MappingProxyType({"train": 2048, "val": 64, "test": 128})
EPOCHS, BATCH = 18, 32
ANCHORS = (
    ((8.0, 16.0), (16.0, 20.0), (14.0, 28.0)),
    ((22.0, 26.0), (20.0, 38.0), (28.0, 32.0)),
    ((34.0, 36.0), (28.0, 46.0), (40.0, 48.0)),
)
"""Of digits, in pixels of the network's input. Each level's loss is a mean over its own matches: COCO's large anchors
would leave the coarsest level a few matches, and the noise of those is what the backbone would then learn from."""
NETWORK: Mapping[str, Any] = MappingProxyType({"block": "repvgg", "anchors": ANCHORS})
RECIPE: Mapping[str, Any] = MappingProxyType(
    {
        "lr": 0.002,
        "warmup_epochs": 1.0,
        "classes": 4.0,  # the recipe's 0.5 is for 80 classes
        "flip_horizontal": 0.0,  # a mirrored digit is no digit
        "mosaic": 0.0,  # scenes vary already
        "scale": 0.2,
    }
)
SHOWN = 12
CHECKED = 4
MADE = ("scenes", "training", "detections")
NEEDED = ("mlxtend", "skimage", "sklearn", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino")
"""Looked for before the work that ends with them."""


def run(
    folder: Path,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    counts: Mapping[str, int] = COUNTS,
    network: Mapping[str, Any] = NETWORK,
    pairs: int = 100,
    quiet: bool = False,
    stage: Stage = quietly,
) -> Outcome:
    """Walk the road; leave scenes, training, weights, ONNX, OpenVINO, results and pictures in `folder`, anew each time.

    With `quiet` the training says nothing. Raises `InputError` where `folder` cannot be written,
    ModuleNotFoundError without the extra `demo`.
    """
    start = time.perf_counter()
    for name in NEEDED:
        importlib.import_module(name)
    check_writable(folder / "results.json")
    with stage(f"making {sum(counts.values())} scenes: handwritten digits on photographs"):
        for name in MADE:
            shutil.rmtree(folder / name, ignore_errors=True)
        data = write_scenes(folder / "scenes", counts, SIDE, seed)
    began = time.perf_counter()
    options = {"network": dict(network), "recipe": dict(RECIPE), "size": SIZE, "batch": BATCH}
    best = train(data, folder=folder / "training", quiet=quiet, epochs=epochs, seed=seed, **options).best
    trained_in = time.perf_counter() - began
    pictures = sorted((folder / "scenes" / "images" / "test").iterdir())
    with stage("folding, and running both on the scenes that were held out"):
        trained = load_model(best)
        folded = copy.deepcopy(trained).fuse()
        held_out = check_split(open_spec(data), "test", SIZE, "ram")
        inputs = [_input(path) for path in pictures]
        certificate = verbs.verify(trained, folded, torch.from_numpy(np.concatenate(inputs[:CHECKED])))
        same = agree(lambda images: _run(folded, images), trained, inputs, "predictions")
        before, after = _measured(trained, held_out), _measured(folded, held_out)
    with stage("writing weights, ONNX and OpenVINO, and running each file"):
        save(folded, folder / "digits.safetensors")
        files = dict(_exported(folded, folder, pictures[:CHECKED]))
    with stage("timing in torch, ONNX Runtime and OpenVINO"):
        times = _timed(trained, folded, folder, pairs)
    with stage("detecting, drawing"):
        detector = Detector(folder / "digits.onnx", SIZE)
        detect(detector, pictures[:SHOWN], folder / "detections")
        contact_sheet(detector, pictures[:SHOWN], folder / "scenes.jpg")
        outcome = Outcome(
            before,
            after,
            certificate,
            same,
            files,
            times,
            dict(counts),
            trained_in,
            time.perf_counter() - start,
        )
        write_results(folder, outcome.to_dict(), markdown(outcome))
        draw_times(outcome.times, folder / "times.png", "One scene, one thread: branched and folded")
    return outcome


def _input(picture: Path) -> np.ndarray:
    """What the network sees of a picture, (1, 3, SIZE, SIZE) in 0..1."""
    pixels = read_picture(picture)
    return network_input(fill(pixels, place(pixels.shape[0], pixels.shape[1], SIZE)))[None]


def _run(network: YOLO[Any], images: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return network(torch.from_numpy(images))


def _measured(network: YOLO[Any], split: Split) -> Measured:
    metrics = validate(network, split).metrics
    totals = verbs.explain(network, torch.zeros(1, 3, SIZE, SIZE)).before
    return Measured(totals, metrics.map50, metrics.map)


def _exported(network: YOLO[Any], folder: Path, pictures: list[Path]) -> Iterator[tuple[Path, Agreement]]:
    for suffix in (".onnx", ".xml"):
        written = export(network, folder / f"digits{suffix}", Plan(SIZE), pictures)
        yield written.path, written.agreement


def _timed(trained: YOLO[Any], folded: YOLO[Any], folder: Path, pairs: int) -> dict[str, Paired]:
    """Of one scene on one thread; the branched network is exported as it stands."""
    example = (torch.rand(1, 3, SIZE, SIZE),)
    branched = folder / "branched.onnx"
    export_onnx(trained, example, branched, free_batch=False)
    in_torch = benchmark(trained, folded, example, ("torch",), pairs=pairs, seconds=10.0)
    runtimes = ("onnxruntime", "openvino")
    return in_torch | benchmark(
        branched, folder / "digits.onnx", example, runtimes, pairs=pairs, seconds=10.0
    )
