"""`unbranch reparameterize`: fold a network, prove it, write it."""

from pathlib import Path
from typing import Annotated

import typer

from unbranch.cli.arguments import (
    BatchOption,
    CostOption,
    JsonOption,
    ModelArgument,
    OptionOption,
    RuntimeOption,
    SizeOption,
    TrustOption,
    WeightsOption,
    WhereOption,
    asked,
)
from unbranch.cli.console import out, out_json, say, working
from unbranch.cli.errors import FAILED
from unbranch.cli.forms import open_network
from unbranch.deploy.weights import check_writable
from unbranch.report import certificate_table, report_tables


def command(  # noqa: PLR0913 - the options are the interface
    model: ModelArgument,
    weights: WeightsOption = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Where it goes: a module as .safetensors (weights) or .onnx, a file as its kind.",
        ),
    ] = None,
    input_size: SizeOption = None,
    batch: BatchOption = None,
    option: OptionOption = None,
    where: WhereOption = None,
    cost: CostOption = "work",
    runtime: RuntimeOption = None,
    trust: TrustOption = "witnessed",
    as_json: JsonOption = False,
) -> None:
    """Fold every linear region that pays into one convolution, prove the result equal, and write it.

    Exit code 0 only where the folded network is proved equal; nothing is written otherwise.
    """
    if target is not None:
        check_writable(target)
    with working(f"reading {model}"):
        network = open_network(asked(model, weights, option, input_size, batch))
    if target is not None:
        network.check_target(target)
    with working("folding"):
        folded, report = network.reparameterize(
            {"where": where, "cost": cost, "runtime": runtime, "trust": trust}
        )
    with working("running both"):
        certificate = network.verify(folded, report)
    written = None
    if target is not None and certificate:
        with working(f"writing {target}"):
            written = folded.save(target)
    if as_json:
        out_json(
            {
                "model": model,
                "report": report.to_dict(),
                "certificate": certificate.to_dict(),
                "written": str(target) if target is not None and certificate else None,
                "file_certificate": written.to_dict() if written is not None else None,
                "notes": list(network.notes),
            }
        )
    else:
        out(*report_tables(report), *certificate_table(certificate))
        if written is not None:
            out(f"\n{target}, run against torch:", *certificate_table(written))
        for note in network.notes:
            say(note)
        if target is not None:
            say(f"wrote {target}" if certificate else f"not equal, so {target} was not written")
    if not certificate:
        raise typer.Exit(FAILED)
