"""A trained detector before and after folding: the same boxes on every picture of a split, and what it takes.

    python benchmarks/detector.py WEIGHTS DATA [--split test] [--size 320] [--confidence 0.25] [--threads 1] [--pairs 60]

Weights are in training form, as `unbranch train` writes them. Both forms run in torch, ONNX Runtime and
OpenVINO on every picture of the split; the boxes of all six are held against those of the network as it was
trained, in torch. Then each runtime runs both forms in turn on one picture: medians and the ratio of the pairs.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import publish
from torch import Tensor

from unbranch.deploy.bench import benchmark
from unbranch.deploy.onnx_file import export_onnx
from unbranch.deploy.runtimes import RUNTIMES
from unbranch.detect import load_model
from unbranch.detect.data import Report, open_spec
from unbranch.detect.engines import OnnxEngine, OpenVinoEngine
from unbranch.detect.letterbox import fill, network_input, place
from unbranch.detect.nms import USUAL, Limits, suppress
from unbranch.detect.sources import read_picture
from unbranch.models.yolo import YOLO
from unbranch.runtimes.timing import Paired

TIMED = ("torch", "onnxruntime", "openvino")
PIXELS, SCORE = 1.0, 0.005
"""What two boxes may differ by and be the same."""

Network = Callable[[np.ndarray], Tensor]


@dataclass
class Agreement:
    """How the boxes of one form in one runtime compare with the trained network's."""

    pictures: int = 0
    same: int = 0
    boxes: int = 0
    pixels: float = 0.0
    score: float = 0.0

    def add(self, found: Tensor, wanted: Tensor) -> None:
        """One picture more. Boxes come best first; equal scores may change places, so each is paired by nearness."""
        self.pictures += 1
        self.boxes += len(wanted)
        if len(found) != len(wanted):
            return
        if len(wanted):
            far = (found[:, None, :4] - wanted[None, :, :4]).abs().amax(-1)
            far = far + 1e6 * (found[:, None, 5] != wanted[None, :, 5])
            nearest = far.argmin(0)
            pixels = float(far.amin(0).max())
            score = float((found[nearest, 4] - wanted[:, 4]).abs().max())
            if len(nearest.unique()) < len(nearest) or pixels > PIXELS or score > SCORE:
                return
            self.pixels, self.score = max(self.pixels, pixels), max(self.score, score)
        self.same += 1


def in_torch(network: YOLO[Any]) -> Network:
    """The module as a function of pictures."""

    def run(images: np.ndarray) -> Tensor:
        with torch.inference_mode():
            return network(torch.from_numpy(images))

    return run


def agreements(
    forms: dict[str, YOLO[Any]], planes: list[np.ndarray], limits: Limits
) -> dict[tuple[str, str], Agreement]:
    """For each runtime and form: its boxes beside those of the form `before` in torch."""
    with tempfile.TemporaryDirectory() as folder:
        networks: dict[tuple[str, str], Network] = {}
        for form, network in forms.items():
            file = Path(folder) / f"{form}.onnx"
            export_onnx(network, [torch.from_numpy(planes[0][None])], file, free_batch=False)
            networks["torch", form] = in_torch(network)
            networks["onnxruntime", form] = OnnxEngine(file).run
            networks["openvino", form] = OpenVinoEngine(file).run
        found = {key: Agreement() for key in networks}
        for picture in planes:
            boxes = {key: suppress(run(picture[None]), limits)[0] for key, run in networks.items()}
            for key, agreement in found.items():
                agreement.add(boxes[key], boxes["torch", "before"])
    return found


def main() -> None:
    """Compare the boxes, time, print and publish. Ends with 1 where boxes differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", help="a data.yaml, or the folder of a data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--confidence", type=float, default=USUAL.confidence)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=60)
    asked = parser.parse_args()
    before = load_model(asked.weights).eval()
    if before.deployed:
        parser.error(f"{asked.weights}: is folded already; give weights in training form")
    forms = {"before": before, "after": copy.deepcopy(before).fuse()}
    pictures = [
        read_picture(entry.path) for entry in open_spec(asked.data).entries(asked.split, Report(asked.split))
    ]
    planes = [letterboxed(picture, asked.size, before.stride) for picture in pictures]
    planes = [plane for plane in planes if plane.shape == planes[0].shape]
    print(f"{len(planes)} of {len(pictures)} pictures, of {planes[0].shape[1]}x{planes[0].shape[2]}")
    found = agreements(forms, planes, replace(USUAL, confidence=asked.confidence))
    if not found["torch", "before"].boxes:
        parser.error(f"{asked.weights}: finds nothing on these pictures, so nothing can be compared")
    times = benchmark(
        before,
        forms["after"],
        [torch.from_numpy(planes[0][None])],
        TIMED,
        threads=asked.threads,
        pairs=asked.pairs,
    )
    publish(
        "detector",
        ("runtime", "same boxes before", "same boxes after", "furthest", "before, ms", "after, ms", "ratio"),
        [
            row(runtime, found[runtime, "before"], found[runtime, "after"], times[runtime])
            for runtime in TIMED
        ],
        {
            "threads_used": asked.threads,
            "confidence": asked.confidence,
            "size": planes[0].shape[1:],
            "parameters": {form: sum(p.numel() for p in net.parameters()) for form, net in forms.items()},
            "boxes": {f"{runtime} {form}": vars(agreement) for (runtime, form), agreement in found.items()},
            "times": {runtime: paired.to_dict() for runtime, paired in times.items()},
        },
    )
    if any(agreement.same < agreement.pictures for agreement in found.values()):
        raise SystemExit(1)


def letterboxed(picture: np.ndarray, size: int, stride: int) -> np.ndarray:
    """A picture as the network reads it, (3, rows, columns), padded to the stride."""
    height, width = picture.shape[:2]
    return network_input(fill(picture, place(height, width, (size, size), stride, rectangular=True)))


def row(runtime: str, before: Agreement, after: Agreement, paired: Paired) -> tuple[str, ...]:
    """One runtime, for the table."""
    return (
        RUNTIMES[runtime],
        f"{before.same} of {before.pictures}",
        f"{after.same} of {after.pictures}, {after.boxes} boxes",
        f"{after.pixels:.1e} px, {after.score:.1e}",
        f"{paired.before:.2f}",
        f"{paired.after:.2f}",
        f"{paired.ratio:.2f}x ({paired.low:.2f}-{paired.high:.2f})",
    )


if __name__ == "__main__":
    main()
