"""`unbranch demo`: the whole road, on real digits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from unbranch.cli.arguments import JsonOption
from unbranch.cli.console import out, out_json
from unbranch.cli.errors import FAILED


def command(
    target: Annotated[Path, typer.Option("--out", "-o", help="The folder for everything it makes.")] = Path(
        "runs/demo"
    ),
    classification: Annotated[
        bool, typer.Option("--classification", help="The short one: a RepVGG that tells digits apart.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over what it trains on.")] = None,
    seed: Annotated[int, typer.Option(help="Every random draw of the training follows from it.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a small YOLOv5 with branches to find digits on photographs, fold it, prove it equal, export it, time it.

    Exit code 0 only where it is equal, finds the same boxes before and after, and has learnt (mAP50 0.6).
    """
    given: dict[str, Any] = {"seed": seed, "stage": _stage} | ({} if epochs is None else {"epochs": epochs})
    if classification:
        from unbranch.demo.classification import results
        from unbranch.demo.classification.road import run

        outcome = run(target, **given)
        found = results.rows(outcome), results.proofs(outcome), results.LOOK
    else:
        from unbranch.demo.detection import results
        from unbranch.demo.detection.road import run

        outcome = run(target, quiet=as_json, **given)
        found = results.rows(outcome), results.proofs(outcome), results.LOOK
    if as_json:
        out_json(outcome.to_dict())
    else:
        _show(target, *found)
        if not outcome.passed:
            out("NOT PASSED: see results.json")
    if not outcome.passed:
        raise typer.Exit(FAILED)


def _show(
    folder: Path, rows: Sequence[Sequence[str]], proofs: Sequence[str], look: Mapping[str, str]
) -> None:
    table = Table("", "branched", "folded", "ratio", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    width = max(map(len, look)) + 2
    out("", table, "", *proofs, "", f"Look at, in {folder}:")
    out(*(f"  {name:{width}}{what}" for name, what in look.items()))


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
