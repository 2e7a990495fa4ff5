"""The gallery of blocks: each public block as a drawing, made from the block itself. ``python -m unbranch.report.gallery docs``."""

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbranch import blocks
from unbranch.blocks import Block, BlockOptions
from unbranch.detect.files import replacing
from unbranch.report.pictures import AFTER, INK, QUIET, figure_of, save_figure
from unbranch.report.sketch import Sketch, layers_of, sketch

CHANNELS, SEED = 8, 7
PAGE, FOLDER = "blocks.md", "blocks"
WIDE, HIGH, LEFT, GAP, SHORT = 1.32, 0.42, 0.88, 0.34, 0.24
FILL = {"norm": "#e8edf3", "mean": "#e6f0e4", "filled border": "#f6ecd9"}


def public_blocks() -> list[type[Block]]:
    """Every block that `unbranch.blocks` offers, by name."""
    offered = [vars(blocks)[name] for name in sorted(blocks.__all__)]
    return [one for one in offered if inspect.isclass(one) and issubclass(one, Block) and one is not Block]


def example_of(kind: type[Block]) -> Block:
    """A block of eight channels with all options left as they are."""
    own: Any = kind
    channels = (CHANNELS, CHANNELS) if "in_channels" in inspect.signature(kind).parameters else (CHANNELS,)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return own(*channels).eval()


def write_gallery(docs: Path) -> list[Path]:
    """The page and its drawings, in `docs`."""
    kinds = public_blocks()
    for kind in kinds:
        draw_block(example_of(kind), docs / FOLDER / f"{kind.__name__}.png")
    with replacing(docs / PAGE) as part:
        part.write_text(page(kinds), encoding="utf-8")
    return [docs / PAGE, *(docs / FOLDER / f"{kind.__name__}.png" for kind in kinds)]


def page(kinds: Sequence[type[Block]]) -> str:
    """The gallery as Markdown: maths and source of each block, its drawing, its options."""
    lines = [
        "# The blocks of `unbranch.blocks`",
        "",
        "Left of the arrow a block as it trains, right of it the one convolution that `switch_to_deploy()` leaves, with the mean size of "
        "its taps. Drawn from the blocks themselves, eight channels wide, by `python -m unbranch.report.gallery docs`.",
    ]
    for kind in kinds:
        maths, *more = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
        told = [" ".join(text.split()) for text in more if not text.startswith(("Shapes:", ">>>"))]
        lines += ["", f"## {kind.__name__}", "", "```text", maths, "```"]
        lines += [line for text in told for line in ("", text.replace("*", "\\*"))]
        lines += ["", f"![{kind.__name__}]({FOLDER}/{kind.__name__}.png)"]
        lines += ["", f"`{kind.__name__}{_signature(kind)}`"]
    common = ", ".join(f"`{name}`" for name in BlockOptions.__annotations__)
    return "\n".join([*lines, "", f"Every block also takes {common}; see `BlockOptions`.", ""])


def _signature(kind: type[Block]) -> str:
    """How it is called; what all blocks take is left to ``**options``."""
    shared = {*BlockOptions.__annotations__, "recipe"}
    parameters = inspect.signature(kind).parameters.values()
    own = [p for p in parameters if p.name not in shared and p.kind is not inspect.Parameter.VAR_KEYWORD]
    texts = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in own]
    return f"({', '.join(texts if len(own) == len(parameters) else [*texts, '**options'])})"


def draw_block(block: Block, target: Path) -> None:
    """The branches, their sum and what follows, and the one convolution that they become, as a PNG."""
    drawn = sketch(block.branches)
    after = [*drawn.after, *layers_of(block.activation)]
    step = WIDE + GAP
    bend = LEFT + max(len(row) for row in drawn.rows) * (WIDE + SHORT) + 0.08
    joint = bend + 0.5
    width = joint + len(after) * step + 4.1
    height = max(len(drawn.rows) * (HIGH + 0.2) + 0.35, 1.75)
    figure = figure_of(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(-height / 2, height / 2)
    axes.axis("off")
    _text(axes, 0.35, 0, "x")
    for index, row in enumerate(drawn.rows):
        _row(axes, row, ((len(drawn.rows) - 1) / 2 - index) * (HIGH + 0.2), bend, joint)
    if len(drawn.rows) > 1:
        axes.add_patch(_circle(joint, 0))
        _text(axes, joint, -0.005, "+", 15)
        _text(axes, joint, -0.36, drawn.joint, 8)
    else:
        _line(axes, (joint - 0.2, 0), (joint + 0.2, 0))
    x = joint + 0.2
    for name in after:
        _line(axes, (x, 0), (x + GAP, 0), arrow=True)
        _box(axes, x + GAP, 0, name)
        x += step
    _line(axes, (x, 0), (x + GAP, 0), arrow=True)
    _text(axes, x + GAP + 0.14, 0, "y")
    _deployed(figure, axes, block, (width - 2.35, height))
    save_figure(figure, target)


def _row(axes: Any, row: Sequence[str], y: float, bend: float, joint: float) -> None:
    """One branch, from x on the left to the sum."""
    _line(axes, (0.5, 0), (LEFT, y))
    x = LEFT
    for name in row:
        _line(axes, (x, y), (x + SHORT, y), arrow=True)
        _box(axes, x + SHORT, y, name)
        x += SHORT + WIDE
    _line(axes, (x, y), (bend, y))
    _line(axes, (bend, y), (joint - 0.19, 0), arrow=True)


def _deployed(figure: Any, axes: Any, block: Block, at: tuple[float, float]) -> None:
    """The arrow, the convolution by name, and the mean size of each of its taps."""
    left, height = at
    kernel, said = deployed(block)
    axes.annotate(
        "",
        (left + 0.05, 0),
        (left - 0.45, 0),
        arrowprops={"arrowstyle": "-|>,head_length=0.5,head_width=0.3", "color": AFTER, "linewidth": 3},
    )
    side = 1.15
    inset = figure.add_axes(
        (
            (left + 0.25) / figure.get_figwidth(),
            0.5 - side / 2 / height + 0.06,
            side / figure.get_figwidth(),
            side / height,
        )
    )
    size = kernel.abs().mean((0, 1)).reshape(kernel.shape[2], -1)
    inset.imshow(size.numpy(), cmap="Blues", vmin=0)
    inset.set_xticks([])
    inset.set_yticks([])
    for spine in inset.spines.values():
        spine.set_color(AFTER)
        spine.set_linewidth(2)
    _text(axes, left + 0.25 + side / 2, -side / 2 - 0.06, said, 9)


def deployed(block: Block) -> tuple[Tensor, str]:
    """The kernel of the block's deploy form, (out, in / groups, *k), and its name."""
    block.switch_to_deploy()
    layer = block.branches[-1] if isinstance(block.branches, nn.Sequential) else block.branches
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise TypeError(f"{type(block).__name__} became a {type(layer).__name__}")
    depthwise = layer.groups == layer.in_channels > 1
    return layer.weight.detach(), f"one {layers_of(layer)[0]}" + (", depthwise" if depthwise else "")


def _box(axes: Any, x: float, y: float, name: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.07"
    axes.add_patch(
        FancyBboxPatch(
            (x, y - HIGH / 2),
            WIDE,
            HIGH,
            style,
            facecolor=FILL.get(name, "#dcebf2"),
            edgecolor=QUIET,
            linewidth=0.9,
        )
    )
    _text(axes, x + WIDE / 2, y - 0.01, name, 10 if len(name) < 14 else 8)


def _circle(x: float, y: float) -> Any:
    from matplotlib.patches import Circle

    return Circle((x, y), 0.19, facecolor="white", edgecolor=INK, linewidth=1.2, zorder=3)


def _line(axes: Any, start: tuple[float, float], end: tuple[float, float], arrow: bool = False) -> None:
    style = "-|>,head_length=0.35,head_width=0.16" if arrow else "-"
    axes.annotate(
        "",
        end,
        start,
        arrowprops={"arrowstyle": style, "color": INK, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0},
    )


def _text(axes: Any, x: float, y: float, text: str, size: float = 12) -> None:
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=INK, zorder=4)


__all__ = ["Sketch", "deployed", "draw_block", "example_of", "page", "public_blocks", "write_gallery"]

if __name__ == "__main__":
    write_gallery(Path(sys.argv[1]))
