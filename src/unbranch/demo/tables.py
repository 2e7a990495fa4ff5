"""What every demonstration leaves to read: before and after in one table, as Markdown for people and as JSON for machines."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unbranch.deploy.runtimes import RUNTIMES
from unbranch.detect.files import replacing
from unbranch.fold.report import Totals
from unbranch.report.tables import scaled, timing_cells
from unbranch.runtimes.timing import Paired

Row = tuple[str, str, str, str]
"""What is measured, of the branched network and of the folded one, and the ratio of times."""


def compared(
    before: Totals, after: Totals, quality: Sequence[tuple[str, str, str]], times: Mapping[str, Paired]
) -> list[Row]:
    """Sizes, how good each is, and times by runtime."""
    return [
        ("ops in a run", str(before.ops), str(after.ops), ""),
        ("parameters", scaled(before.parameters), scaled(after.parameters), ""),
        ("multiply-adds", scaled(before.multiply_adds), scaled(after.multiply_adds), ""),
        *((*row, "") for row in quality),
        *((f"{RUNTIMES[name]}, ms", *timing_cells(paired)) for name, paired in times.items()),
    ]


def page(
    title: str,
    rows: Sequence[Row],
    proofs: Sequence[str],
    *,
    about: Sequence[str] = (),
    measured: str,
    end: str,
    passed: bool,
    pictures: Sequence[str],
) -> str:
    """A page of Markdown; `about` stands above the table, `measured` below it says of what it is."""
    lines = [f"# {title}", "", *about, "", "| | branched | folded | ratio |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", f"{measured}: median (quartiles) of runs in turn; the ratio with its 95 % interval.", ""]
    lines += [f"- {proof}" for proof in proofs]
    lines += ["", f"{end} " + ("Passed." if passed else "**NOT PASSED.**"), ""]
    lines += [f"![{picture}]({picture})\n" for picture in pictures]
    return "\n".join(lines)


def write_results(folder: Path, found: Mapping[str, Any], text: str) -> None:
    """`results.json` and `results.md`."""
    with replacing(folder / "results.json") as part:
        part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    with replacing(folder / "results.md") as part:
        part.write_text(text, encoding="utf-8")
