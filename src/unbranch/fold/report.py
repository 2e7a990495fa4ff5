"""What folded, what did not, and why."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Totals:
    """Of a network, or a part of it, for one run of the example input."""

    ops: int = 0
    multiply_adds: float = 0.0
    parameters: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            self.ops + other.ops, self.multiply_adds + other.multiply_adds, self.parameters + other.parameters
        )


@dataclass(frozen=True)
class Folded:
    """One place that became one convolution. ``output`` is the module whose output is the convolution's value."""

    place: str
    becomes: str
    how: str
    before: Totals
    after: Totals
    output: str = ""


@dataclass(frozen=True)
class Refused:
    """One place that was left alone, and the reason."""

    place: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The result of a fold or of `explain`: ``str()`` is a summary that fits a terminal, `to_dict` is for machines."""

    before: Totals
    after: Totals
    folded: tuple[Folded, ...] = ()
    refused: tuple[Refused, ...] = ()
    notes: tuple[str, ...] = field(default=())
    applied: bool = True

    @property
    def changed(self) -> bool:
        """Something folded, or would."""
        return bool(self.folded)

    @property
    def verdict(self) -> str:
        """One line."""
        if not self.folded:
            return "nothing to gain: there is no place that one convolution would compute with less work"
        verb = "folded" if self.applied else "would fold"
        saved = 1 - self.after.multiply_adds / self.before.multiply_adds if self.before.multiply_adds else 0.0
        return (
            f"{verb} {len(self.folded)} place{'s' * (len(self.folded) != 1)}: ops {self.before.ops} -> {self.after.ops}, "
            f"multiply-adds {_big(self.before.multiply_adds)} -> {_big(self.after.multiply_adds)} ({-100 * saved:+.0f} %), "
            f"parameters {_big(self.before.parameters)} -> {_big(self.after.parameters)}"
        )

    def __str__(self) -> str:
        lines = [self.verdict]
        lines += [f"  {f.place}: {f.before.ops} ops -> {f.becomes} ({f.how})" for f in self.folded]
        if self.refused:
            lines.append(f"left alone, {len(self.refused)}:")
            lines += [f"  {r.place}: {r.reason}" for r in self.refused]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "verdict": self.verdict,
            "applied": self.applied,
            "before": vars(self.before),
            "after": vars(self.after),
            "folded": [
                {
                    "place": f.place,
                    "becomes": f.becomes,
                    "how": f.how,
                    "before": vars(f.before),
                    "after": vars(f.after),
                }
                for f in self.folded
            ],
            "refused": [vars(r) for r in self.refused],
            "notes": list(self.notes),
        }


def _big(number: int | float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
