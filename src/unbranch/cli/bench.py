"""`unbranch bench`: before and after, timed side by side in each runtime."""

from pathlib import Path
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
from unbranch.cli.forms import open_network
from unbranch.deploy.runtimes import RUNTIMES
from unbranch.deploy.weights import check_writable
from unbranch.detect.errors import InputError
from unbranch.report import timing_table


def command(  # noqa: PLR0913 - the options are the interface
    model: ModelArgument,
    weights: WeightsOption = None,
    input_size: SizeOption = None,
    batch: BatchOption = None,
    option: OptionOption = None,
    runtimes: Annotated[
        str | None,
        typer.Option(
            help=f"Some of {','.join(RUNTIMES)}; by default all that take MODEL, torch.compile apart."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each runtime.")] = 1,
    pairs: Annotated[int, typer.Option(min=10, help="Runs of each, in turn.")] = 50,
    seconds: Annotated[
        float, typer.Option(min=0, help="The most time for each runtime, ten pairs apart.")
    ] = 30.0,
    picture: Annotated[Path | None, typer.Option(help="Draw the times into this .png.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time the network as it is and folded, run in turn: medians, quartiles, and the ratio with its 95 % interval."""
    chosen = [name.strip() for name in runtimes.split(",")] if runtimes else []
    unknown = [name for name in chosen if name not in RUNTIMES]
    if unknown:
        raise InputError(f"--runtimes {unknown[0]}: is none of {', '.join(RUNTIMES)}")
    if picture is not None:
        check_writable(picture)
    with working(f"reading {model}"):
        network = open_network(asked(model, weights, option, input_size, batch))
    with working("folding"):
        folded, report = network.reparameterize({})
    times = {}
    for runtime in chosen or network.runtimes:
        with working(f"timing in {RUNTIMES[runtime]}"):
            times |= network.time(folded, [runtime], threads=threads, pairs=pairs, seconds=seconds)
    if picture is not None:
        from unbranch.report.pictures import draw_times

        draw_times(times, picture, f"{model}, {threads} thread{'s' * (threads > 1)}")
    if as_json:
        data = {name: paired.to_dict() for name, paired in times.items()}
        out_json({"model": model, "threads": threads, "verdict": report.verdict, "milliseconds": data})
        return
    out(timing_table(times), report.verdict)
    if picture is not None:
        say(f"wrote {picture}")
