"""The arguments that several verbs share."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from unbranch.cli.forms import Asked
from unbranch.cli.pairs import pairs

ModelArgument: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="timm:NAME, torchvision:NAME, unbranch:NAME, package.module:factory, file.py:factory, .onnx or .pt2.",
    ),
]
WeightsOption: TypeAlias = Annotated[
    Path | None, typer.Option("--weights", "-w", help="A checkpoint: .pth, .pt, .ckpt or .safetensors.")
]
SizeOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="The input's size: 224, 224x320, 3x224x224 or 1x3x224x224; once for each input. Guessed by default."
    ),
]
BatchOption: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Samples in the input; 1 by default.")
]
OptionOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--option", help="An option of the model, such as num_classes=10; may be repeated."),
]
WhereOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Fold only places whose path matches this glob, such as 'backbone.*'.")
]
CostOption: TypeAlias = Annotated[
    str,
    typer.Option(
        help="work: never more arithmetic and memory traffic than before; measure: candidates are timed on this machine."
    ),
]
RuntimeOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Where --cost measure times: torch, onnxruntime or openvino.")
]
TrustOption: TypeAlias = Annotated[
    str,
    typer.Option(
        help="witnessed: leave alone what depends on the input's size or data; observed: every call is like the recorded one."
    ),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]


def asked(
    model: str,
    weights: Path | None,
    option: list[str] | None,
    input_size: list[str] | None,
    batch: int | None,
) -> Asked:
    """The network that these arguments name."""
    return Asked(model, weights, pairs(option, "--option"), input_size, batch)
