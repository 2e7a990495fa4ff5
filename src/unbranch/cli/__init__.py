"""The command line: one verb a file, each a thin call of one public function."""

from collections.abc import Callable
from typing import Annotated

import typer

from unbranch import __version__
from unbranch.cli import (
    bench,
    demo,
    detect,
    expand,
    explain,
    export,
    import_,
    reparameterize,
    train,
    val,
    verify,
)
from unbranch.cli.errors import OneLineErrors, show_tracebacks

app = typer.Typer(
    name="unbranch",
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"unbranch {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="On an error, show where in the code it arose.")
    ] = False,
) -> None:
    """Train with branches, ship without them: structural re-parameterization, exact or refused.

    A MODEL is timm:NAME, torchvision:NAME, unbranch:NAME, package.module:factory, file.py:factory, or a file:
    .onnx, or .pt2 of torch.export.
    """
    show_tracebacks(traceback)


FOLDING, DETECTION = "Fold any network", "Detect objects (YOLOv5, YOLOv7)"
VERBS: dict[str, tuple[str, Callable[..., None]]] = {
    "reparameterize": (FOLDING, reparameterize.command),
    "explain": (FOLDING, explain.command),
    "verify": (FOLDING, verify.command),
    "bench": (FOLDING, bench.command),
    "expand": (FOLDING, expand.command),
    "demo": (FOLDING, demo.command),
    "train": (DETECTION, train.command),
    "val": (DETECTION, val.command),
    "detect": (DETECTION, detect.command),
    "export": (DETECTION, export.command),
    "import": (DETECTION, import_.command),
}

for _name, (_panel, _command) in VERBS.items():
    app.command(_name, rich_help_panel=_panel)(_command)


def main() -> None:
    """The program `unbranch`."""
    app()
