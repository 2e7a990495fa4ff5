"""`unbranch detect`: find objects on pictures and videos."""

from pathlib import Path
from typing import Annotated

import typer


def command(  # noqa: PLR0913 - the options are the interface
    weights: Annotated[str, typer.Argument(help="A .safetensors, .onnx or OpenVINO file.")],
    source: Annotated[list[str], typer.Argument(help="Pictures, videos, folders or globs.")],
    out: Annotated[Path, typer.Option(help="The folder for what is kept.")] = Path("runs/detect"),
    size: Annotated[int, typer.Option(help="Longer side of the network's input, in pixels.")] = 640,
    confidence: Annotated[float, typer.Option(help="Boxes with a lower score do not count.")] = 0.25,
    iou: Annotated[float, typer.Option(help="Overlap above which the weaker of two boxes falls.")] = 0.45,
    most: Annotated[int, typer.Option(help="At most so many boxes on a picture.")] = 300,
    only: Annotated[
        list[str] | None, typer.Option(help="A class to report, by name or index; may be repeated.")
    ] = None,
    agnostic: Annotated[
        bool, typer.Option("--agnostic", help="Boxes of different classes may suppress each other.")
    ] = False,
    square: Annotated[bool, typer.Option("--square", help="Pad to a square, not to the stride.")] = False,
    batch: Annotated[int, typer.Option(help="Pictures that run together.")] = 1,
    workers: Annotated[int | None, typer.Option(help="Cores to use; all by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda for .safetensors.")] = "cpu",
    pictures: Annotated[bool, typer.Option(help="Keep pictures and videos with boxes drawn.")] = True,
    txt: Annotated[bool, typer.Option("--txt", help="Keep a YOLO text file for each picture.")] = False,
    coco: Annotated[bool, typer.Option("--coco", help="Keep detections.json, in COCO's form.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Keep detections.csv.")] = False,
    show_time: Annotated[bool, typer.Option("--show-time", help="Print what each step takes.")] = False,
) -> None:
    """Print what is seen on each picture, and keep it; ends with 1 where a picture could not be read."""
    from collections import Counter

    from rich.console import Console

    from unbranch.detect.nms import Limits
    from unbranch.detect.predict import Detector, Result
    from unbranch.detect.running import detect, only_classes
    from unbranch.detect.sources import VideoFrame
    from unbranch.detect.writers import Kind, boxes_of

    console, errors = (
        Console(stderr=stderr, soft_wrap=True, markup=False, highlight=False) for stderr in (False, True)
    )
    detector = Detector(weights, size, Limits(confidence, iou, most, agnostic=agnostic), not square, device)
    for note in detector.notes:
        console.print(note)
    if only:
        only_classes(detector, only)

    def say(result: Result) -> None:
        frame = f", frame {result.item.index}" if isinstance(result.item, VideoFrame) else ""
        if result.problem is not None:
            errors.print(result.problem)
            return
        counted = Counter(box.name for box in boxes_of(result.detections))
        seen = ", ".join(f"{count} {name}" for name, count in counted.items()) or "nothing"
        took = "".join(f"  {step} {1e3 * spent:.1f} ms" for step, spent in result.seconds.items())
        console.print(f"{result.item.name}{frame}: {seen}{took if show_time else ''}")

    wanted: dict[Kind, bool] = {"pictures": pictures, "txt": txt, "coco": coco, "csv": csv}
    summary = detect(detector, source, out, [kind for kind, on in wanted.items() if on], batch, workers, say)
    console.print(
        f"{summary.pictures} pictures, {sum(summary.objects.values())} objects, kept in {summary.folder}"
    )
    if show_time:
        console.print(summary.times)
    if summary.problems:
        errors.print(f"{len(summary.problems)} could not be read to the end")
        raise typer.Exit(1)
