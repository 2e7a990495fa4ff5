"""`unbranch import`: an original YOLOv5 checkpoint as one of ours, without running anything that it holds."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    checkpoint: Annotated[Path, typer.Argument(help="A YOLOv5 .pt, or a .safetensors of its weights.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write; beside the checkpoint by default.")
    ] = None,
) -> None:
    """Read weights, class names, anchors and layout, and write them as .safetensors."""
    from rich.console import Console

    from unbranch.detect.checkpoint import save
    from unbranch.detect.errors import InputError
    from unbranch.detect.originals import import_original

    target = out or checkpoint.with_suffix(".safetensors")
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: checkpoints are written as .safetensors; name it so")
    if target.resolve() == checkpoint.resolve():
        raise InputError(f"{checkpoint}: would be overwritten; name another file with -o")
    network = import_original(checkpoint)
    save(network, target)
    about = network.description
    count = sum(parameter.numel() for parameter in network.parameters())
    form = "norms folded" if network.deployed else "norms not folded"
    Console(soft_wrap=True, markup=False, highlight=False).print(
        f"{target}: {about.network}, {about.num_classes} classes, {count:,} parameters, {form}"
    )
