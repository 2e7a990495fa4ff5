"""What the detection demo found."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbranch.deploy import Paired
from unbranch.detect.agreement import Agreement
from unbranch.fold.certificate import Certificate
from unbranch.fold.report import Totals

ENOUGH = 0.6
"""The mAP50 of a network that has learnt; about 0.8 is usual."""


@dataclass(frozen=True)
class Measured:
    """One form of the network: its size, and its mean average precision on the scenes that were held out."""

    totals: Totals
    map50: float
    map: float

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {**vars(self.totals), "mAP50": self.map50, "mAP50-95": self.map}


@dataclass(frozen=True)
class Outcome:
    """The trained network `before` and `after` folding, and what holds the two together.

    same: the boxes of both on every scene that was held out; files: what was exported, each against the folded
    network in torch; times by runtime; trained and all: seconds.
    """

    before: Measured
    after: Measured
    certificate: Certificate
    same: Agreement
    files: dict[Path, Agreement]
    times: dict[str, Paired]
    scenes: dict[str, int]
    trained: float
    all: float

    @property
    def proved(self) -> bool:
        """The certificate passes, both find the same boxes, and every file says what torch says."""
        return all(map(bool, (self.certificate, self.same, *self.files.values())))

    @property
    def passed(self) -> bool:
        """Proved, and the folded network has a mAP50 of `ENOUGH` on scenes that were held out."""
        return self.proved and self.after.map50 >= ENOUGH

    def to_dict(self) -> dict[str, Any]:
        """For machines; times in milliseconds."""
        return {
            "passed": self.passed,
            "scenes": self.scenes,
            "branched": self.before.to_dict(),
            "folded": self.after.to_dict(),
            "certificate": self.certificate.to_dict(),
            "same_boxes": _plain(self.same),
            "files": {file.name: _plain(agreement) for file, agreement in self.files.items()},
            "milliseconds": {name: paired.to_dict() for name, paired in self.times.items()},
            "training_seconds": self.trained,
            "seconds": self.all,
        }


def _plain(agreement: Agreement) -> dict[str, Any]:
    return {
        "passed": bool(agreement),
        "error": agreement.error,
        "boxes": agreement.boxes,
        "wrong": agreement.wrong,
    }
