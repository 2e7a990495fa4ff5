"""The demo's results as a table for a reader, as JSON for machines, and as pictures."""

from pathlib import Path

import cv2
import numpy as np
import torch

from unbranch.demo.detection.outcome import Outcome
from unbranch.demo.tables import Row, compared, page
from unbranch.detect.files import replacing
from unbranch.detect.predict import Detector
from unbranch.detect.sources import Pixels, read_picture
from unbranch.detect.writers import draw

COLUMNS = 4
GAP = 8
ENLARGED = 2
WHITE = 255
QUALITY = 85
LOOK = {
    "scenes.jpg": "scenes that were held out, and what the exported network finds on them",
    "detections": "the same scenes, one file each",
    "training": "a training batch, losses, precision and recall, confusion",
    "times.png": "branched and folded, timed in turn",
    "results.md": "all figures; results.json has them for machines",
    "digits.onnx": "the network to ship; digits.xml is OpenVINO's, digits.safetensors torch's",
}
"""What to look at, by name."""


def rows(outcome: Outcome) -> list[Row]:
    """What is measured, of the branched network and of the folded one, and the ratio of times."""
    before, after = outcome.before, outcome.after
    quality = [
        ("mAP50", f"{before.map50:.3f}", f"{after.map50:.3f}"),
        ("mAP50-95", f"{before.map:.3f}", f"{after.map:.3f}"),
    ]
    return compared(before.totals, after.totals, quality, outcome.times)


def proofs(outcome: Outcome) -> list[str]:
    """A line for each thing that was proved."""
    same = outcome.same
    return [
        f"folded = branched at two input sizes: largest error {outcome.certificate.error:.1e}",
        f"same boxes on {outcome.scenes['test']} scenes that were held out: {same.boxes} found, {same.wrong} differ",
        *(f"{file.name} = torch: {agreement}" for file, agreement in outcome.files.items()),
    ]


def markdown(outcome: Outcome) -> str:
    """The results as a page of Markdown."""
    scenes = outcome.scenes
    return page(
        "A YOLOv5 with RepVGG in its C3, trained with branches, shipped without",
        rows(outcome),
        proofs(outcome),
        about=(
            f"Handwritten digits on photographs: {scenes['train']} scenes to train on, {scenes['test']} held out, made of",
            "other digits and other photographs.",
        ),
        measured="mAP on the scenes that were held out. Times of one scene on one thread",
        end=f"Trained in {outcome.trained:.0f} s, {outcome.all:.0f} s in all.",
        passed=outcome.passed,
        pictures=("scenes.jpg", "times.png"),
    )


def contact_sheet(detector: Detector, pictures: list[Path], target: Path) -> None:
    """One picture of all, enlarged, in rows of four, with what the detector finds on each."""
    sheets = [_enlarged(detector, read_picture(path)) for path in pictures]
    sheets += [np.full_like(sheets[0], WHITE)] * (-len(sheets) % COLUMNS)
    lines = [np.concatenate(sheets[i : i + COLUMNS], axis=1) for i in range(0, len(sheets), COLUMNS)]
    whole = np.concatenate(lines)[:-GAP, :-GAP]
    with replacing(target) as part:
        cv2.imwrite(str(part), whole, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))


def _enlarged(detector: Detector, pixels: Pixels) -> Pixels:
    """An annotated picture, with white on its right and below."""
    boxes = detector.boxes([pixels])[0]
    found = detector.as_detections(torch.cat((ENLARGED * boxes[:, :4], boxes[:, 4:]), dim=1))
    large = cv2.resize(pixels, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC)
    drawn = draw(np.asarray(large), found)
    return np.pad(drawn, ((0, GAP), (0, GAP), (0, 0)), constant_values=WHITE)
