"""`unbranch demo`: the whole road, on real digits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from unbranch.cli.arguments import JsonOption
from unbranch.cli.console import out, out_json
from unbranch.cli.errors import FAILED
from unbranch.demo.road import EPOCHS


def command(
    target: Annotated[Path, typer.Option("--out", "-o", help="The folder for everything it makes.")] = Path(
        "runs/demo"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 4,000 training digits.")] = EPOCHS,
    seed: Annotated[int, typer.Option(help="Every random draw of the training follows from it.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a small branched network on 4,000 MNIST digits, fold it, prove it equal, export it, time it.

    Exit code 0 only where it is equal, predicts the same for each test digit, and is right for 98 % of them.
    """
    from unbranch.demo import run
    from unbranch.demo.results import proofs, rows

    outcome = run(target, epochs=epochs, seed=seed, stage=_stage)
    if as_json:
        out_json(outcome.to_dict())
    else:
        table = Table("", "branched", "folded", "ratio", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for row in rows(outcome):
            table.add_row(*row)
        out("", table, "", *proofs(outcome), "", *_what_to_look_at(target))
        if not outcome.passed:
            out("NOT PASSED: see results.json")
    if not outcome.passed:
        raise typer.Exit(FAILED)


def _what_to_look_at(folder: Path) -> list[str]:
    return [
        f"Look at, in {folder}:",
        "  kernels.png      three branches beside the one kernel they became",
        "  predictions.png  what the folded network says of thirty digits",
        "  times.png        branched and folded, timed in turn",
        "  results.md       all figures; results.json has them for machines",
        "  folded.onnx      the network to ship; *.safetensors are the weights",
    ]


@contextmanager
def _stage(title: str) -> Iterator[Callable[[int, int, str], object]]:
    """A bar on a terminal, where the stage counts, else a spinner; a line when it is done."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30), TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, text="")

        def move(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, text=text)

        yield move
        seconds = bar.tasks[0].elapsed or 0.0
    console.print(f"[green]done[/] {title} [dim]{seconds:.0f} s[/]", highlight=False)
