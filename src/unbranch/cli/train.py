"""`unbranch train`: train a detector on one's own pictures."""

from pathlib import Path
from typing import Annotated

import typer

from unbranch.cli.pairs import pairs


def command(  # noqa: PLR0913 - the options are the interface
    data: Annotated[
        str | None, typer.Option(help="A data.yaml, or the folder of a VOC, COCO or YOLO data set.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="yolov5n (the default), s, m, l or x, yolov7-tiny, yolov7, yolov7-w6, weights (.safetensors), or a YAML "
            "description."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder that holds everything of this training.")] = Path(
        "runs/train"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in --out.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures; 100.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures in a batch, over all devices; 16.")] = None,
    size: Annotated[int | None, typer.Option(help="Training size in pixels, a multiple of 32; 640.")] = None,
    seed: Annotated[int | None, typer.Option(help="Every random draw follows from it; 0.")] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(help="An option of the network, such as block=repvgg; may be repeated."),
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="A hyper-parameter, such as mosaic=0.5; may be repeated.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Trained weights (.safetensors) to start from.")] = None,
    expand: Annotated[
        str | None,
        typer.Option(
            help="Give convolutions of the trained weights the branches of a recipe, see unbranch expand --list."
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            help="With --expand: which ones, a glob on their paths, such as '*.bottlenecks.*second*'."
        ),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, 32, 16-mixed or bf16-mixed.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    devices: Annotated[str | None, typer.Option(help="A number, a list such as 0,2, or auto.")] = None,
    num_nodes: Annotated[int | None, typer.Option(help="Machines; 1.")] = None,
    workers: Annotated[
        str | None, typer.Option(help="Processes that make batches: a number, or auto.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Where decoded pictures stay: auto, ram, disk or none.")
    ] = None,
    cache_folder: Annotated[str | None, typer.Option(help="The folder of the disk cache.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Epochs without a better result before the end, 0 for never; 50.")
    ] = None,
    validate_every: Annotated[int | None, typer.Option(help="Epochs between validations; 1.")] = None,
    freeze_norms: Annotated[
        bool | None, typer.Option("--freeze-norms", help="Leave the norms as they are.")
    ] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Write TensorBoard's event files.")
    ] = None,
) -> None:
    """Train a detector; a killed training goes on with --resume, to the same result."""
    from unbranch.detect import train

    settings = {
        "epochs": epochs,
        "batch": batch,
        "size": size,
        "seed": seed,
        "network": pairs(network, "--network") or None,
        "recipe": pairs(recipe, "--recipe") or None,
        "weights": weights,
        "expand": expand,
        "where": where,
        "precision": precision,
        "accelerator": accelerator,
        "devices": number(devices),
        "nodes": num_nodes,
        "workers": number(workers),
        "cache": cache,
        "cache_folder": cache_folder,
        "patience": patience,
        "validate_every": validate_every,
        "freeze_norms": freeze_norms,
        "tensorboard": tensorboard,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    train(data, model, out, resume, **given)


def number(text: str | None) -> int | str | None:
    """A whole number where the text is one, else the text.

    Example:
        >>> number("-1"), number("0,2")
        (-1, '0,2')
    """
    return int(text) if text is not None and text.lstrip("-").isdigit() else text
