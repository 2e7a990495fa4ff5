"""`unbranch expand`: give a trained network branches to learn on with, prove that it computes the same, write it."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn

from unbranch import __version__, verbs
from unbranch.cli.arguments import BatchOption, JsonOption, OptionOption, SizeOption, WeightsOption, asked
from unbranch.cli.calibrating import batches_of
from unbranch.cli.console import out, out_json, say, working
from unbranch.cli.errors import FAILED
from unbranch.cli.forms.module import ModuleNetwork
from unbranch.cli.shapes import examples
from unbranch.deploy.said import first_line
from unbranch.deploy.weights import check_writable, save_weights
from unbranch.detect.errors import InputError
from unbranch.expand import RECIPES, calibrate, expand_
from unbranch.fold.verify import RUN_ERRORS
from unbranch.models.yolo import YOLO
from unbranch.report import certificate_table
from unbranch.report.sketch import sketched

SUFFIX = ".safetensors"


def command(  # noqa: PLR0913 - the options are the interface
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="timm:NAME, torchvision:NAME, unbranch:NAME, package.module:factory, file.py:factory, or a detector's .safetensors.",
        ),
    ] = None,
    weights: WeightsOption = None,
    recipe: Annotated[str, typer.Option(help="Which branches, see --list.")] = "repvgg",
    where: Annotated[
        str | None,
        typer.Option(
            help="Which convolutions, a glob on their paths, such as 'layer3.*'; by default all of more than one tap that can."
        ),
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where the weights go: a .safetensors file.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            help="What the new norms will see: pictures (for a detector), or a .npy or .safetensors file of inputs.",
        ),
    ] = None,
    input_size: SizeOption = None,
    batch: BatchOption = None,
    option: OptionOption = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the recipes, and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn convolutions of a trained network into branches that compute the same, to train on with.

    Exit code 0 only where the expanded network is proved equal; nothing is written otherwise.
    """
    if list_recipes:
        for name, line in sketched(RECIPES).items():
            typer.echo(f"{name:14} {line}")
        return
    if model is None:
        raise InputError("no MODEL is named; --list lists the recipes")
    if target is not None:
        if target.suffix != SUFFIX:
            raise InputError(f"--out {target}: weights are written as {SUFFIX}; name it so")
        check_writable(target)
    with working(f"reading {model}"):
        network, inputs, notes = _opened(model, weights, option, input_size, batch)
    wide = copy.deepcopy(network)
    with working("expanding"):
        done = expand_(wide, recipe, inputs, where=where)
        norms = 0 if calibration is None else _calibrated(wide, calibration, network)
    with working("running both"):
        certificate = verbs.verify(network, wide, inputs)
    if target is not None and certificate:
        _save(wide, target, model, recipe)
    if as_json:
        out_json(
            {
                "model": model,
                "recipe": recipe,
                "layers": list(done.layers),
                "left": dict(done.left),
                "calibrated": norms,
                "certificate": certificate.to_dict(),
                "written": str(target) if target is not None and certificate else None,
                "notes": list(notes),
            }
        )
    else:
        out(str(done), *certificate_table(certificate))
        for note in (*notes, *_remarks(network, wide, norms)):
            say(note)
        if target is not None:
            say(f"wrote {target}" if certificate else f"not equal, so {target} was not written")
    if not certificate:
        raise typer.Exit(FAILED)


def _opened(
    spec: str,
    weights: Path | None,
    option: list[str] | None,
    sizes: list[str] | None,
    batch: int | None,
) -> tuple[nn.Module, Sequence[Tensor], tuple[str, ...]]:
    """The network, an input that it takes, and remarks on what was read."""
    if Path(spec).suffix != SUFFIX:
        opened = ModuleNetwork.open(asked(spec, weights, option, sizes, batch))
        return opened.model, opened.inputs, opened.notes
    if weights is not None or option:
        raise InputError(f"--weights and --option are for modules: {spec} is a detector and has its own")
    from unbranch.detect.checkpoint import load_model

    detector = load_model(spec)
    side = str(5 * detector.stride)
    return detector, examples(detector, sizes or [side], batch), ()


def _calibrated(wide: nn.Module, source: str, network: nn.Module) -> int:
    batches = batches_of(source, network)
    try:
        return calibrate(wide, batches)
    except RUN_ERRORS as error:
        raise InputError(f"--calibrate {source}: the model cannot run on it: {first_line(error)}") from error


def _save(wide: nn.Module, target: Path, spec: str, recipe: str) -> None:
    if isinstance(wide, YOLO):
        from unbranch.detect.checkpoint import save

        save(wide, target, {"expanded": recipe})
    else:
        save_weights(wide, target, {"model": spec, "expanded": recipe, "unbranch": __version__})


def _remarks(before: nn.Module, after: nn.Module, norms: int) -> Iterator[str]:
    counts: list[Any] = [sum(p.numel() for p in m.parameters()) for m in (before, after)]
    yield f"{counts[0]:,} parameters became {counts[1]:,}, to be folded back after training"
    yield (
        f"{norms} norms calibrated"
        if norms
        else "not calibrated: training starts with norms that know nothing of the data; --calibrate gives them some"
    )
