"""What can be wrong with a data set, counted and named, so that training starts with what is sound."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum


class Problem(Enum):
    """One kind of fault; the value is how the summary words it, with what was done about it."""

    MISSING_PICTURE = "picture missing or unreadable, skipped"
    CORRUPT_PICTURE = "picture cannot be decoded, skipped"
    DUPLICATE_STEM = "picture with a name already taken, skipped"
    MISSING_LABEL = "no label file, taken as background"
    MALFORMED_LABEL = "label that cannot be read, skipped"
    UNKNOWN_CLASS = "box of an unknown class, skipped"
    OUT_OF_RANGE = "box outside its picture, skipped"
    ZERO_AREA = "box of zero area, skipped"
    DUPLICATE_BOX = "box given twice, kept once"
    SHARED_PICTURE = "picture that another split holds too, kept"


@dataclass
class Report:
    """The summary of one split: what it holds and what was skipped.

    `add` counts a problem and remembers where it was; `lines` words the summary for a person.

    Example:
        >>> report = Report("train")
        >>> report.add(Problem.ZERO_AREA, "a.xml object 3")
        >>> report.count(Problem.ZERO_AREA)
        1
    """

    split: str
    pictures: int = 0
    backgrounds: int = 0
    boxes: Counter[str] = field(default_factory=Counter)
    problems: dict[Problem, list[str]] = field(default_factory=dict)

    def add(self, problem: Problem, where: str) -> None:
        """Count one fault found at `where` (a file, and the line or object within it)."""
        self.problems.setdefault(problem, []).append(where)

    def count(self, problem: Problem) -> int:
        """How often `problem` was met."""
        return len(self.problems.get(problem, []))

    def lines(self, named: int = 3) -> list[str]:
        """The summary, one line a fact; each fault names at most `named` places."""
        total = sum(self.boxes.values())
        classes = ", ".join(f"{name} {number}" for name, number in self.boxes.items())
        head = f"{self.split}: {self.pictures} pictures, {total} boxes"
        if classes:
            head += f" ({classes})"
        if self.backgrounds:
            head += f", {self.backgrounds} without a box"
        return [head, *(self._fault(problem, named) for problem in Problem if self.count(problem))]

    def faults(self) -> str:
        """Every fault in one line, for an error's message."""
        return "; ".join(line.strip() for line in self.lines(named=1)[1:]) or "the labels are empty"

    def _fault(self, problem: Problem, named: int) -> str:
        places: Sequence[str] = self.problems[problem]
        rest = f", and {len(places) - named} more" if len(places) > named else ""
        return f"  {len(places)} x {problem.value}: {', '.join(places[:named])}{rest}"
