"""Pictures: what a network says of samples, a block's kernels, times before and after."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from unbranch.deploy.runtimes import RUNTIMES
from unbranch.detect.files import replacing
from unbranch.runtimes.timing import Paired

INK, QUIET, WRONG = "#1b1f24", "#8a929c", "#c7362f"
BEFORE, AFTER = "#b9c3cf", "#1f6f8b"
DIVERGING = "RdBu_r"


def draw_kernels(
    branches: Mapping[str, Float[Tensor, "out in_ k k"]],
    kernel: Float[Tensor, "out in_ k k"],
    target: Path,
    *,
    title: str = "",
    channels: int = 12,
    zoomed: int = 3,
) -> None:
    """The branches' kernels, all on the size of the sum, and the one kernel that they add up to, as a PNG.

    Above, the first `channels` output channels (down) by input channels (across), k x k weights each; below,
    channel `zoomed` to itself with its numbers. Blue is negative, red positive, on one scale.
    """
    figure = figure_of(11.0, 5.2)
    panels = {**branches, "the one kernel": kernel}
    # Few weights are the largest: a scale that most of the kernel's weights fill shows the rest too.
    limit = max(float(kernel[:channels, :channels].abs().quantile(0.97)), 1e-12)
    grid = figure.add_gridspec(
        2,
        len(panels),
        height_ratios=[3, 1.3],
        hspace=0.14,
        wspace=0.24,
        left=0.04,
        right=0.98,
        top=0.83,
        bottom=0.03,
    )
    for column, (name, part) in enumerate(panels.items()):
        last = column == len(panels) - 1
        above = figure.add_subplot(grid[0, column])
        above.imshow(_mosaic(part[:channels, :channels]), cmap=DIVERGING, vmin=-limit, vmax=limit)
        _bare(above, AFTER if last else QUIET, 2.0 if last else 0.6)
        above.set_title(name, fontsize=11, color=INK, weight="bold" if last else "normal", pad=6)
        below = figure.add_subplot(grid[1, column])
        _numbers(below, part[zoomed, zoomed], limit, last)
        if not column:
            below.set_ylabel(f"channel {zoomed}\nto itself", fontsize=9, color=QUIET)
            above.set_ylabel(f"{channels} of {kernel.shape[0]} output channels", fontsize=9, color=QUIET)
            above.set_xlabel(f"{channels} of {kernel.shape[1]} input channels", fontsize=9, color=QUIET)
        else:
            sign = "=" if last else "+"
            above.text(
                -0.12, 0.5, sign, transform=above.transAxes, fontsize=22, ha="center", va="center", color=INK
            )
    figure.text(0.04, 0.93, title, fontsize=13, weight="bold", color=INK)
    save_figure(figure, target)


def _mosaic(part: Float[Tensor, "out in_ k k"]) -> np.ndarray:
    """One picture of all k x k weights, a blank line between kernels."""
    rows, columns, k, _ = part.shape
    picture = np.full((rows * (k + 1) - 1, columns * (k + 1) - 1), np.nan)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (k + 1), column * (k + 1)
            picture[top : top + k, left : left + k] = part[row, column].numpy()
    return picture


def _numbers(axes: Any, part: Float[Tensor, "k k"], limit: float, strong: bool) -> None:
    axes.imshow(part.numpy(), cmap=DIVERGING, vmin=-limit, vmax=limit)
    for (row, column), value in np.ndenumerate(part.numpy()):
        colour = QUIET if value == 0 else "white" if abs(value) > 0.6 * limit else INK
        axes.text(
            column, row, f"{value:.2f}" if value else "0", ha="center", va="center", fontsize=9, color=colour
        )
    _bare(axes, AFTER if strong else QUIET, 2.0 if strong else 0.6)


def draw_predictions(
    pictures: Float[Tensor, "n 1 h w"],
    labels: Sequence[int],
    probabilities: Float[Tensor, "n classes"],
    target: Path,
    *,
    title: str = "",
    columns: int = 10,
) -> None:
    """Each picture with the class that is likeliest and its probability, as a PNG; a wrong one says the truth in red."""
    rows = -(-len(pictures) // columns)
    figure = figure_of(1.05 * columns, 1.38 * rows + 0.5)
    top = 1 - 0.62 / (1.38 * rows + 0.5)
    grid = figure.add_gridspec(
        rows, columns, hspace=0.42, wspace=0.1, left=0.01, right=0.99, top=top, bottom=0.06 / rows
    )
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        axes.imshow(picture[0].numpy(), cmap="gray_r")
        share, guess = (float(one) for one in probabilities[i].max(0))
        right = int(guess) == label
        text = f"{int(guess)}  {100 * share:.0f} %" if right else f"{int(guess)}, is {label}"
        axes.set_title(
            text, fontsize=10, color=INK if right else WRONG, weight="normal" if right else "bold", pad=3
        )
        _bare(axes, QUIET if right else WRONG, 0.6 if right else 2.0)
    figure.text(
        0.01, 1 - 0.3 / (1.38 * rows + 0.5), title, fontsize=12, weight="bold", color=INK, va="center"
    )
    save_figure(figure, target)


def draw_times(times: Mapping[str, Paired], target: Path, title: str = "") -> None:
    """Milliseconds before and after in each runtime, the quartiles as whiskers, and the ratio, as a PNG."""
    figure = figure_of(7.5, 0.9 * len(times) + 1.0)
    axes = figure.add_axes((0.17, 0.28 / len(times), 0.76, 1 - 0.95 / (0.9 * len(times) + 1.0)))
    longest = max(paired.before_quartiles[1] for paired in times.values())
    for row, (runtime, paired) in enumerate(times.items()):
        for offset, colour, median, (low, high) in (
            (-0.19, BEFORE, paired.before, paired.before_quartiles),
            (0.19, AFTER, paired.after, paired.after_quartiles),
        ):
            axes.barh(row + offset, median, 0.34, color=colour)
            axes.plot((low, high), (row + offset,) * 2, color=INK, linewidth=1.2)
        text = f"folded {paired.after:.3g} ms: {paired.ratio:.2f}x"
        axes.text(
            max(paired.after_quartiles[1], 0) + 0.015 * longest,
            row + 0.19,
            text,
            va="center",
            fontsize=10,
            color=INK,
        )
        before = f"branched {paired.before:.3g} ms"
        axes.text(
            paired.before_quartiles[1] + 0.015 * longest,
            row - 0.19,
            before,
            va="center",
            fontsize=10,
            color=QUIET,
        )
        axes.text(
            -0.02 * longest,
            row,
            RUNTIMES.get(runtime, runtime),
            ha="right",
            va="center",
            fontsize=11,
            color=INK,
        )
    axes.set_xlim(0, 1.3 * longest)
    axes.set_ylim(len(times) - 0.5, -0.5)
    axes.axis("off")
    figure.text(
        0.02, 1 - 0.3 / (0.9 * len(times) + 1.0), title, fontsize=12, weight="bold", color=INK, va="center"
    )
    save_figure(figure, target)


def figure_of(width: float, height: float) -> Any:
    """A white figure of that size, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, facecolor="white")


def _bare(axes: Any, colour: str, width: float) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color(colour)
        side.set_linewidth(width)


def save_figure(figure: Any, target: Path) -> None:
    """Write it, whole or not at all."""
    with replacing(target) as part:
        figure.savefig(part)
