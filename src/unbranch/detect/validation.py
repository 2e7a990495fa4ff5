"""Run a network over a split and measure it, whatever the network is."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unbranch.detect.data.batches import EvaluationBatch
from unbranch.detect.nms import Limits, suppress

Predictor = Callable[[Tensor], Tensor]
"""Images (n, 3, h, w) in 0..1 to predictions (n, boxes, 5 + classes): x, y, w, h, objectness, class
probabilities."""

MEASURING = Limits(confidence=0.001, iou=0.6, most=300, multi_label=True)
"""What counts as a detection when measuring: nearly everything, so that the curves are whole."""


def network_images(images: Tensor, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 pictures as the network reads them: 0..1, channels last in memory."""
    moved = images.to(device, non_blocking=True)
    return moved.to(dtype, memory_format=torch.channels_last) / 255


def found_in(
    batch: EvaluationBatch, predictions: Float[Tensor, "n boxes values"], limits: Limits
) -> list[tuple[int, Float[Tensor, "found 6"]]]:
    """The detections of each picture of a batch, by its index, in pixels of the original picture, on the
    CPU."""
    kept = suppress(predictions, limits)
    results = []
    for index, box, standing in zip(batch.pictures, batch.boxes, kept, strict=True):
        rows = standing.float().cpu()
        results.append((index, torch.cat((box.to_picture(rows[:, :4]), rows[:, 4:]), 1)))
    return results


def detect_all(
    predictor: Predictor,
    batches: Iterable[EvaluationBatch],
    limits: Limits,
    device: torch.device | str = "cpu",
) -> tuple[dict[int, Tensor], dict[str, float]]:
    """The detections of every picture by index, and the milliseconds a picture for input, network and
    suppression."""
    found: dict[int, Tensor] = {}
    spent = {"input": 0.0, "network": 0.0, "suppression": 0.0}
    with torch.inference_mode():
        for batch in batches:
            marks = [time.perf_counter()]
            images = network_images(batch.images, device)
            marks.append(time.perf_counter())
            predictions = predictor(images)
            marks.append(time.perf_counter())
            found.update(found_in(batch, predictions, limits))
            marks.append(time.perf_counter())
            for part, start, end in zip(spent, marks[:-1], marks[1:], strict=True):
                spent[part] += end - start
    return found, {part: 1000 * seconds / max(len(found), 1) for part, seconds in spent.items()}


def in_order(found: dict[int, Tensor], count: int) -> Sequence[Tensor]:
    """The detections of pictures 0 … count - 1; each must be there."""
    return [found[index] for index in range(count)]


def plain_table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as text in aligned columns, numbers with three decimals."""
    text = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in text) for i in range(len(text[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in text
    )
