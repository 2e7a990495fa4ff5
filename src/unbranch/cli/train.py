"""`unbranch train`: train a YOLOv5 on one's own pictures."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unbranch.cli.pairs import pairs


def command(  # noqa: PLR0913 - the options are the interface
    ctx: typer.Context,
    data: Annotated[
        str | None, typer.Option(help="A data.yaml, or the folder of a VOC, COCO or YOLO data set.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="yolov5n, s, m, l or x, weights (.safetensors), or a YAML description.")
    ] = "yolov5n",
    out: Annotated[Path, typer.Option(help="The folder that holds everything of this training.")] = Path(
        "runs/train"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in --out.")] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the pictures.")] = 100,
    batch: Annotated[int, typer.Option(help="Pictures in a batch, over all devices.")] = 16,
    size: Annotated[int, typer.Option(help="Training size in pixels, a multiple of 32.")] = 640,
    seed: Annotated[int, typer.Option(help="Every random draw follows from it.")] = 0,
    network: Annotated[
        list[str] | None,
        typer.Option(help="An option of the network, such as block=repvgg; may be repeated."),
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="A hyper-parameter, such as mosaic=0.5; may be repeated.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Trained weights (.safetensors) to start from.")] = None,
    precision: Annotated[str, typer.Option(help="auto, 32, 16-mixed or bf16-mixed.")] = "auto",
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    devices: Annotated[str, typer.Option(help="A number, a list such as 0,2, or auto.")] = "auto",
    num_nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    workers: Annotated[str, typer.Option(help="Processes that make batches: a number, or auto.")] = "auto",
    cache: Annotated[
        str, typer.Option(help="Where decoded pictures stay: auto, ram, disk or none.")
    ] = "auto",
    cache_folder: Annotated[str | None, typer.Option(help="The folder of the disk cache.")] = None,
    patience: Annotated[
        int, typer.Option(help="Epochs without a better result before the end; 0: never.")
    ] = 50,
    validate_every: Annotated[int, typer.Option(help="Epochs between validations.")] = 1,
    freeze_norms: Annotated[
        bool, typer.Option("--freeze-norms", help="Leave the norms as they are.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's event files.")
    ] = False,
) -> None:
    """Train a detector; a killed training goes on with --resume, to the same result."""
    from unbranch.detect import train

    if resume:
        refuse_beside_resume(ctx)
        train(folder=out, resume=True)
        return
    options: dict[str, Any] = {
        "epochs": epochs,
        "batch": batch,
        "size": size,
        "seed": seed,
        "weights": weights,
    }
    train(
        data,
        model,
        folder=out,
        **options,
        network=pairs(network, "--network"),
        recipe=pairs(recipe, "--recipe"),
        precision=precision,
        accelerator=accelerator,
        devices=int(devices) if devices.lstrip("-").isdigit() else devices,
        nodes=num_nodes,
        workers=int(workers) if workers.isdigit() else workers,
        cache=cache,
        cache_folder=cache_folder,
        patience=patience,
        validate_every=validate_every,
        freeze_norms=freeze_norms,
        tensorboard=tensorboard,
    )


def refuse_beside_resume(ctx: typer.Context) -> None:
    """Raise typer.BadParameter where a setting is given to a training that has its own."""
    for name in ctx.params:
        source = ctx.get_parameter_source(name)
        if name not in ("out", "resume") and source is not None and source.name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            raise typer.BadParameter(f"{option} beside --resume: a resumed training keeps its own settings")
