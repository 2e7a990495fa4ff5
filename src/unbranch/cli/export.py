"""`unbranch export`: a detector for other runtimes, checked against torch before it gets its name."""

from pathlib import Path
from typing import Annotated, Literal

import typer

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "safetensors": ".safetensors"}


def command(  # noqa: PLR0913 - the options are the interface
    weights: Annotated[Path, typer.Argument(help="A .safetensors of ours.")],
    to: Annotated[
        list[str],
        typer.Option(help="onnx, openvino, pt2, or safetensors for folded weights; may be repeated."),
    ] = ["onnx"],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file's name without its suffix; the weights' by default."),
    ] = None,
    size: Annotated[str, typer.Option(help="Side of the input in pixels, or ROWSxCOLUMNS.")] = "640",
    batch: Annotated[int, typer.Option(help="Pictures in a batch, where it is fixed.")] = 1,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Leave batch, rows and columns free.")] = False,
    nms: Annotated[bool, typer.Option("--nms", help="Put the suppression into the file.")] = False,
    confidence: Annotated[float, typer.Option(help="With --nms: lower scores do not count.")] = 0.25,
    iou: Annotated[float, typer.Option(help="With --nms: overlap that suppresses.")] = 0.45,
    layout: Annotated[
        str, typer.Option(help="predictions (YOLOv5's), or scores (later YOLOs').")
    ] = "predictions",
    pictures: Annotated[
        list[str] | None,
        typer.Option(help="Pictures, folders or globs to check the file on; may be repeated."),
    ] = None,
) -> None:
    """Write the files, and print how well each agrees with torch."""
    from rich.console import Console

    from unbranch.detect.errors import InputError
    from unbranch.detect.exporting import Plan, export
    from unbranch.detect.nms import Limits

    unknown = [kind for kind in to if kind not in SUFFIXES]
    if unknown:
        raise InputError(f"--to {unknown[0]}: known are {', '.join(SUFFIXES)}")
    sides = size.lower().split("x")
    if not all(side.isdigit() for side in sides) or len(sides) > len("hw"):
        raise InputError(f"--size {size}: a number of pixels is needed, or ROWSxCOLUMNS")
    chosen: Literal["predictions", "scores"] = "scores" if layout == "scores" else "predictions"
    if layout != chosen:
        raise InputError(f"--layout {layout}: known are predictions and scores")
    plan = Plan(
        (int(sides[0]), int(sides[-1])), batch, dynamic, chosen, Limits(confidence, iou) if nms else None
    )
    base = out or weights.with_suffix("")
    console = Console(soft_wrap=True, markup=False, highlight=False)
    for kind in to:
        written = export(weights, base.with_name(base.name + SUFFIXES[kind]), plan, pictures)
        for note in written.notes:
            console.print(note)
        console.print(f"{written.path}: {written.agreement}")
