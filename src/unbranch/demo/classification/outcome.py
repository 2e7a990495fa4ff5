"""What the demo found."""

from dataclasses import dataclass
from typing import Any

from unbranch.deploy import Paired
from unbranch.fold.certificate import Certificate
from unbranch.fold.report import Report

ENOUGH = 0.98


@dataclass(frozen=True)
class Outcome:
    """Accuracies in 0..1; `agreeing` counts the test pictures of which both networks say the same; times by runtime."""

    accuracy_branched: float
    accuracy: float
    agreeing: int
    tested: int
    report: Report
    certificate: Certificate
    onnx_certificate: Certificate
    times: dict[str, Paired]
    seconds: float

    @property
    def passed(self) -> bool:
        """Both certificates pass, the networks agree on every test picture, and 98 % of what they say is right."""
        proved = bool(self.certificate) and bool(self.onnx_certificate)
        return proved and self.agreeing == self.tested and self.accuracy >= ENOUGH

    def to_dict(self) -> dict[str, Any]:
        """For machines; times in milliseconds."""
        return {
            "passed": self.passed,
            "accuracy": self.accuracy,
            "accuracy_branched": self.accuracy_branched,
            "same_predictions": self.agreeing,
            "test_pictures": self.tested,
            "report": self.report.to_dict(),
            "certificate": self.certificate.to_dict(),
            "onnx_certificate": self.onnx_certificate.to_dict(),
            "milliseconds": {name: paired.to_dict() for name, paired in self.times.items()},
            "training_seconds": self.seconds,
        }
