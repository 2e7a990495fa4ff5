"""`unbranch verify`: run two networks on the same inputs and certify that they agree."""

from typing import Annotated

import typer

from unbranch.cli.arguments import (
    BatchOption,
    JsonOption,
    ModelArgument,
    OptionOption,
    SizeOption,
    WeightsOption,
    asked,
)
from unbranch.cli.console import out, out_json, say, working
from unbranch.cli.errors import FAILED
from unbranch.cli.forms import open_network
from unbranch.report import certificate_table


def command(
    model: ModelArgument,
    after: Annotated[
        str | None,
        typer.Argument(
            metavar="[AFTER]",
            help="The folded weights of MODEL (.safetensors), or another model. By default MODEL, folded now.",
        ),
    ] = None,
    weights: WeightsOption = None,
    input_size: SizeOption = None,
    batch: BatchOption = None,
    option: OptionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Certify that MODEL and AFTER give the same outputs, at two input sizes, in float64 too.

    Exit code 0 only where they do.
    """
    with working(f"reading {model}"):
        network = open_network(asked(model, weights, option, input_size, batch))
    report = None
    if after is None:
        with working("folding"):
            other, report = network.reparameterize({})
    else:
        with working(f"reading {after}"):
            other = network.counterpart(after)
    with working("running both"):
        certificate = network.verify(other, report)
    if as_json:
        out_json({"model": model, "after": after, "certificate": certificate.to_dict()})
    else:
        out(*certificate_table(certificate))
        for note in network.notes:
            say(note)
    if not certificate:
        raise typer.Exit(FAILED)
