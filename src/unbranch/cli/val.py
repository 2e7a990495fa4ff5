"""`unbranch val`: measure weights on a data set with the COCO evaluator."""

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    weights: Annotated[str, typer.Argument(help="A .safetensors, .onnx or OpenVINO file.")],
    data: Annotated[str, typer.Option(help="A data.yaml, or the folder of a VOC, COCO or YOLO data set.")],
    split: Annotated[str, typer.Option(help="The split to measure: train, val or test.")] = "val",
    size: Annotated[int, typer.Option(help="Longer side of the network's input, in pixels.")] = 640,
    batch: Annotated[int, typer.Option(help="Pictures in a batch.")] = 16,
    confidence: Annotated[float, typer.Option(help="Detections below do not count.")] = 0.001,
    iou: Annotated[float, typer.Option(help="Overlap above which the weaker of two boxes falls.")] = 0.6,
    out: Annotated[Path | None, typer.Option(help="A folder for results.json, curves and confusion.")] = None,
) -> None:
    """Print mAP50, mAP50-95, precision and recall, for all classes and for each."""
    from dataclasses import replace

    from unbranch.detect.evaluation import validate
    from unbranch.detect.files import replacing
    from unbranch.detect.training.console import Narrator
    from unbranch.detect.training.logs import write_figures
    from unbranch.detect.validation import MEASURING

    limits = replace(MEASURING, confidence=confidence, iou=iou)
    result = validate(weights, data, split, size, batch, limits)
    narrator = Narrator()
    narrator.say(*result.notes, *result.split.report.lines())
    narrator.table(result.metrics)
    narrator.say(
        "  ".join(f"{part} {spent:.1f} ms" for part, spent in result.milliseconds.items()) + " a picture"
    )
    if out is not None:
        with replacing(out / "results.json") as part:
            part.write_text(json.dumps(result.metrics.to_dict(), indent=2) + "\n", encoding="utf-8")
        write_figures(out, result.metrics, None)
