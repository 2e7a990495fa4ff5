"""The demo's results as a table for a reader, as JSON for machines, and as pictures."""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from unbranch.demo.classification.digits import Digits
from unbranch.demo.classification.outcome import Outcome
from unbranch.demo.tables import Row, compared, page
from unbranch.report.pictures import draw_kernels, draw_predictions, draw_times

SHOWN_DIGITS, MOST_WRONG = 30, 10
LOOK = {
    "kernels.png": "three branches beside the one kernel they became",
    "predictions.png": "what the folded network says of thirty digits",
    "times.png": "branched and folded, timed in turn",
    "results.md": "all figures; results.json has them for machines",
    "folded.onnx": "the network to ship; *.safetensors are the weights",
}
"""What to look at, by name."""


def rows(outcome: Outcome) -> list[Row]:
    """What is measured, of the branched network and of the folded one, and the ratio of times."""
    accuracy = (
        "test accuracy",
        f"{100 * outcome.accuracy_branched:.1f} %",
        f"{100 * outcome.accuracy:.1f} %",
    )
    return compared(outcome.report.before, outcome.report.after, [accuracy], outcome.times)


def proofs(outcome: Outcome) -> list[str]:
    """A line for each thing that was proved."""
    return [
        f"folded = branched at two input sizes: largest error {outcome.certificate.error:.1e}",
        f"same prediction on {outcome.agreeing} of {outcome.tested} test pictures",
        f"ONNX in ONNX Runtime = torch: largest error {outcome.onnx_certificate.error:.1e}",
    ]


def markdown(outcome: Outcome) -> str:
    """The results as a page of Markdown."""
    return page(
        "A branched network, folded",
        rows(outcome),
        proofs(outcome),
        measured="Times of one digit on one thread",
        end=f"Trained in {outcome.seconds:.0f} s.",
        passed=outcome.passed,
        pictures=("kernels.png", "predictions.png", "times.png"),
    )


def draw(
    outcome: Outcome,
    folder: Path,
    digits: Digits,
    logits: Float[Tensor, "n classes"],
    kernels: tuple[Mapping[str, Tensor], Tensor],
) -> None:
    """`kernels.png`, `predictions.png` (the mistakes first) and `times.png`."""
    branches, kernel = kernels
    title = "Three trained branches of one block, and the 3x3 kernel that computes the same"
    draw_kernels(branches, kernel, folder / "kernels.png", title=title)
    probabilities = logits.softmax(1)
    wrong = (logits.argmax(1) != digits.test_labels).nonzero().flatten().tolist()
    shown = wrong[:MOST_WRONG]
    right = [i for i in range(len(logits)) if i not in wrong]
    count = SHOWN_DIGITS - len(shown)
    chosen = [*shown, *(right[i * len(right) // count] for i in range(count))]
    which = "they come first" if shown == wrong else f"{len(shown)} of them come first"
    draw_predictions(
        digits.test[chosen],
        digits.test_labels[chosen].tolist(),
        probabilities[chosen],
        folder / "predictions.png",
        title=f"The folded network: {len(wrong)} of {len(logits)} test digits wrong; {which}",
    )
    draw_times(outcome.times, folder / "times.png", "One digit, one thread: branched and folded")
