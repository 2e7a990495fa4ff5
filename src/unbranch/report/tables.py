"""Reports, certificates and times as tables that fit 80 columns."""

from collections.abc import Mapping

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from unbranch.deploy.runtimes import RUNTIMES
from unbranch.fold.certificate import Certificate
from unbranch.fold.report import Report, Totals
from unbranch.runtimes.timing import Paired

MOST_ROWS = 40
SHOWN_PLACES = 3


def report_tables(report: Report) -> list[RenderableType]:
    """The places that folded, the ones left alone with the reason, the totals, and the verdict last."""
    parts: list[RenderableType] = []
    if report.folded:
        parts.append(_folded(report))
    if report.refused:
        parts.append(_refused(report))
    if report.folded:
        parts.append(_totals(report.before, report.after))
    parts += [Text(f"note: {note}") for note in report.notes]
    parts.append(Text(report.verdict if not report.folded else _places(report)))
    return parts


def _places(report: Report) -> str:
    count = len(report.folded)
    return f"{'folded' if report.applied else 'would fold'} {count} place{'s' * (count != 1)}"


def _table(*headers: str, title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    table.caption_justify = "left"
    for header in headers:
        table.add_column(header, justify="right" if header in _NUMBERS else "left", overflow="fold")
    return table


_NUMBERS = {"ops", "MACs", "before", "after", "change", "error", "limit", "ratio", "before, ms", "after, ms"}


def _folded(report: Report) -> Table:
    title = "one convolution in place of" if report.applied else "could be one convolution"
    table = _table("place", "ops", "becomes", "MACs", title=title)
    for one in report.folded[:MOST_ROWS]:
        table.add_row(
            Text(one.place or "(root)"),
            f"{one.before.ops} -> {one.after.ops}",
            one.becomes,
            _change(one.before.multiply_adds, one.after.multiply_adds),
        )
    if len(report.folded) > MOST_ROWS:
        table.caption = f"and {len(report.folded) - MOST_ROWS} more places (--json has all)"
    return table


def _refused(report: Report) -> Table:
    """Equal reasons share a row."""
    reasons: dict[str, list[str]] = {}
    for one in report.refused:
        reasons.setdefault(one.reason, []).append(one.place)
    table = _table("place", "left alone, since", title="left alone")
    for reason, places in list(reasons.items())[:MOST_ROWS]:
        more = len(places) - SHOWN_PLACES
        shown = "\n".join(places[:SHOWN_PLACES]) + (f"\nand {more} more" if more > 0 else "")
        table.add_row(Text(shown), Text(reason))
    if len(reasons) > MOST_ROWS:
        table.caption = f"and {len(reasons) - MOST_ROWS} more reasons (--json has all)"
    return table


def _totals(before: Totals, after: Totals) -> Table:
    table = _table("whole network", "before", "after", "change")
    for name in ("ops", "multiply_adds", "parameters"):
        first, second = vars(before)[name], vars(after)[name]
        table.add_row(name.replace("_", "-"), scaled(first), scaled(second), _change(first, second))
    return table


def certificate_table(certificate: Certificate) -> list[RenderableType]:
    """Every output at every size and type that was run, then the verdict."""
    table = _table("output", "shape", "type", "input", "error", "limit", "")
    for check in certificate.checks:
        table.add_row(
            Text(check.output),
            "x".join(map(str, check.shape)),
            check.dtype.replace(" weights in ", " in "),
            check.size,
            f"{check.error:.1e}",
            f"{check.tolerance:.0e}",
            Text("ok", style="green") if check.passed else Text("FAIL", style="bold red"),
        )
    parts: list[RenderableType] = [table]
    parts += [Text(f"note: {note}") for note in certificate.notes]
    if certificate.worst_place:
        parts.append(Text(f"largest error at {certificate.worst_place}"))
    verdict = "equal" if certificate else "NOT EQUAL"
    where = f": largest error {certificate.error:.1e}" if certificate.checks else ": nothing to compare"
    parts.append(Text(verdict + where, style="bold green" if certificate else "bold red"))
    return parts


def timing_table(times: Mapping[str, Paired]) -> Table:
    """Medians with their quartiles, and the ratio with its 95 % interval, for each runtime."""
    table = _table("runtime", "before, ms", "after, ms", "ratio")
    for runtime, paired in times.items():
        table.add_row(RUNTIMES.get(runtime, runtime), *timing_cells(paired))
    return table


def timing_cells(paired: Paired) -> tuple[str, str, str]:
    """Before, after and ratio as text, such as ``2.31 (2.28-2.40)``, in milliseconds."""

    def cell(median: float, quartiles: tuple[float, float]) -> str:
        return f"{median:.3g} ({quartiles[0]:.3g}-{quartiles[1]:.3g})"

    return (
        cell(paired.before, paired.before_quartiles),
        cell(paired.after, paired.after_quartiles),
        f"{paired.ratio:.2f}x ({paired.low:.2f}-{paired.high:.2f})",
    )


def scaled(number: float | int) -> str:
    """Three digits and a unit.

    Example:
        >>> scaled(8_308_000)
        '8.31 M'
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if number >= size:
            return f"{number / min(size, 1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{number:.0f}"


def _change(before: float | int, after: float | int) -> str:
    return f"{100 * (after / before - 1):+.0f} %" if before else ""
