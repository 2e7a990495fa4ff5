"""Figures that a person looks at: labels, losses, curves, confusion, a batch of pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.utils import draw_bounding_boxes, make_grid

from unbranch.detect.data.batches import Batch, training_boxes
from unbranch.detect.data.check import Split
from unbranch.detect.files import replacing
from unbranch.detect.metrics import Metrics

PALETTE = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#008080",
    "#9a6324",
    "#808000",
    "#f032e6",
    "#469990",
)
MOST_NAMED = 20
"""Classes up to which each has its own line and label; with more, only the mean is named."""


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def plot_labels(split: Split) -> Figure:
    """How many boxes each class has, where their centres lie, and how large they are in training pixels."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    bars, centres, sides = figure.subplots(1, 3)
    boxes = torch.cat([training_boxes(split, index)[0] for index in range(len(split))])
    named = len(split.names) <= MOST_NAMED
    bars.barh(range(len(split.names)), [split.report.boxes[name] for name in split.names], color=PALETTE[2])
    bars.set_yticks(range(len(split.names)) if named else [], split.names if named else None)
    bars.set(title="boxes a class", xlabel="boxes")
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2).numpy()
    centres.hist2d(middle[:, 0], middle[:, 1], bins=40, cmap="Blues")
    centres.invert_yaxis()
    centres.set(title="box centres", xlabel="x (pixels)", ylabel="y (pixels)")
    extent = (boxes[:, 2:] - boxes[:, :2]).numpy()
    sides.hist2d(extent[:, 0], extent[:, 1], bins=40, cmap="Blues")
    sides.set(title="box sides", xlabel="width (pixels)", ylabel="height (pixels)")
    return figure


def plot_history(rows: Sequence[dict[str, float]]) -> Figure:
    """Losses and measures over the epochs."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    losses, measures, rates = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    for axes, names, title in (
        (losses, ("box", "objectness", "class"), "training loss a picture"),
        (measures, ("precision", "recall", "map50", "map"), "validation"),
        (rates, ("lr",), "learning rate"),
    ):
        for colour, name in zip(PALETTE, names, strict=False):
            axes.plot(epochs, [row[name] for row in rows], marker=".", color=colour, label=name)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def plot_precision_recall(metrics: Metrics) -> Figure:
    """Precision against recall at IoU 0.5, with the AP of each class in the legend."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    recall = np.linspace(0, 1, 101)
    present = [i for i, one in enumerate(metrics.classes) if one.boxes]
    curve = metrics.curves.precision_at_recall
    for index in present:
        one = metrics.classes[index]
        label = f"{one.name} {one.map50:.3f}" if len(present) <= MOST_NAMED else None
        axes.plot(recall, curve[:, index], color=PALETTE[index % len(PALETTE)], linewidth=1, label=label)
    axes.plot(
        recall,
        curve[:, present].mean(1),
        color="black",
        linewidth=2.5,
        label=f"all {metrics.map50:.3f} mAP50",
    )
    axes.set(
        title="precision and recall, IoU 0.5",
        xlabel="recall",
        ylabel="precision",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def plot_f1(metrics: Metrics) -> Figure:
    """F1 against confidence at IoU 0.5; the legend names the confidence where its mean is best."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    curves = metrics.curves
    present = [i for i, one in enumerate(metrics.classes) if one.boxes]
    for index in present:
        label = metrics.classes[index].name if len(present) <= MOST_NAMED else None
        axes.plot(
            curves.confidence, curves.f1[index], color=PALETTE[index % len(PALETTE)], linewidth=1, label=label
        )
    mean = curves.f1[present].mean(0)
    axes.plot(
        curves.confidence,
        mean,
        color="black",
        linewidth=2.5,
        label=f"all {mean.max():.3f} at {metrics.confidence:.3f}",
    )
    axes.set(
        title="F1 and confidence, IoU 0.5", xlabel="confidence", ylabel="F1", xlim=(0, 1), ylim=(0, 1.02)
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_confusion(metrics: Metrics) -> Figure:
    """Which class was found (rows) where which class is (columns), as shares of each column."""
    names = [*(one.name for one in metrics.classes), "nothing"]
    counts = metrics.confusion
    shares = counts / np.maximum(counts.sum(0, keepdims=True), 1)
    side = min(max(len(names) * 0.8, 5), 14)
    figure = Figure(figsize=(side + 1.5, side), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), ax=axes, shrink=0.8)
    axes.set(title="confusion", xlabel="true", ylabel="found")
    if len(names) <= MOST_NAMED:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    return figure


def draw_batch(batch: Batch, names: Sequence[str], most: int = 16) -> UInt8[Tensor, "3 h w"]:
    """The first pictures of a training batch with their boxes, as a grid."""
    shown = []
    for index, image in enumerate(batch.images[:most].cpu()):
        rows = batch.targets[batch.targets[:, 0] == index].cpu()
        corners = box_convert(rows[:, 2:], "cxcywh", "xyxy")
        shown.append(draw_boxes(image, corners, rows[:, 1].long().tolist(), names))
    return make_grid(shown, nrow=int(np.ceil(np.sqrt(len(shown)))))


def draw_boxes(
    image: UInt8[Tensor, "3 h w"], corners: Float[Tensor, "n 4"], classes: Sequence[int], names: Sequence[str]
) -> UInt8[Tensor, "3 h w"]:
    """A picture with named boxes; a picture without boxes is given back as it is."""
    if not len(corners):
        return image.contiguous()
    colours: list[str | tuple[int, int, int]] = [PALETTE[index % len(PALETTE)] for index in classes]
    return draw_bounding_boxes(
        image.contiguous(), corners, [names[i] for i in classes], colors=colours, width=2
    )


def save_picture(image: UInt8[Tensor, "3 h w"], path: Path) -> None:
    """Write a picture by its suffix, whole or not at all."""
    with replacing(path) as part:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(part)
