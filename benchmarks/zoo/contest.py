"""RepVGG against ResNet, EfficientNet and RegNetY: all folded, in turn, in ONNX Runtime and in OpenVINO at 224 px on one thread."""

import json
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks.zoo.networks import Network, make
from benchmarks.zoo.running import RESULTS
from benchmarks.zoo.timing import RUNTIMES, default_export
from unbranch import reparameterize
from unbranch.runtimes.timing import summarize

ENTRANTS = {
    "RepVGG-A0": ("unbranch", "repvgg_a0"),
    "ResNet-18": ("torchvision", "resnet18"),
    "RepVGG-A1": ("unbranch", "repvgg_a1"),
    "ResNet-34": ("torchvision", "resnet34"),
    "RepVGG-B1g2": ("unbranch", "repvgg_b1g2"),
    "ResNet-50": ("torchvision", "resnet50"),
    "EfficientNet-B0": ("torchvision", "efficientnet_b0"),
    "RegNetY-400MF": ("torchvision", "regnet_y_400mf"),
    "RegNetY-1.6GF": ("torchvision", "regnet_y_1_6gf"),
}
ROUNDS = 40


def main() -> None:
    """Fold, export, run in turn, and keep the figures."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: dict[str, Any] = {"networks": {}, "pairs": {}}
    with tempfile.TemporaryDirectory() as folder:
        x = torch.rand(1, 3, 224, 224)
        for name, (library, stem) in ENTRANTS.items():
            made = make(Network(library, stem, "", 0), 224)
            folded, report = reparameterize(made.model, made.inputs, return_report=True)
            onnx.save(default_export(folded, (x,)), f"{folder}/{name}.onnx")
            found["networks"][name] = {
                "multiply_adds": report.after.multiply_adds,
                "parameters": sum(p.numel() for p in folded.parameters()),
            }
        for runtime, open_file in RUNTIMES.items():
            runs = {name: open_file(Path(folder) / f"{name}.onnx", (x,), 1) for name in ENTRANTS}
            times = np.zeros((ROUNDS, len(runs)))
            for turn in range(-2, ROUNDS):
                order = list(enumerate(runs.values()))
                for column, run in order if turn % 2 else reversed(order):
                    start = time.perf_counter()
                    run()
                    if turn >= 0:
                        times[turn, column] = time.perf_counter() - start
            for column, name in enumerate(runs):
                found["networks"][name][runtime] = float(np.median(times[:, column])) * 1e3
            names = list(runs)
            for ours, other in list(pairwise(names))[:5:2]:
                columns = times[:, [names.index(other), names.index(ours)]]
                ratio = summarize([(float(a), float(b)) for a, b in columns])
                found["pairs"].setdefault(f"{other} / {ours}", {})[runtime] = [
                    ratio.ratio,
                    ratio.low,
                    ratio.high,
                ]
    (RESULTS / "contest.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
