"""The demo's results as a table for a reader, as JSON for machines, and as pictures."""

import json
from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from unbranch.demo.classification.digits import Digits
from unbranch.demo.classification.outcome import Outcome
from unbranch.deploy.runtimes import RUNTIMES
from unbranch.detect.files import replacing
from unbranch.report.pictures import draw_kernels, draw_predictions, draw_times
from unbranch.report.tables import scaled, timing_cells

SHOWN_DIGITS, MOST_WRONG = 30, 10
LOOK = {
    "kernels.png": "three branches beside the one kernel they became",
    "predictions.png": "what the folded network says of thirty digits",
    "times.png": "branched and folded, timed in turn",
    "results.md": "all figures; results.json has them for machines",
    "folded.onnx": "the network to ship; *.safetensors are the weights",
}
"""What to look at, by name."""


def rows(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    """What is measured, of the branched network and of the folded one, and the ratio of times."""
    before, after = outcome.report.before, outcome.report.after
    found = [
        ("ops in a run", str(before.ops), str(after.ops), ""),
        ("parameters", scaled(before.parameters), scaled(after.parameters), ""),
        ("multiply-adds", scaled(before.multiply_adds), scaled(after.multiply_adds), ""),
        ("test accuracy", f"{100 * outcome.accuracy_branched:.1f} %", f"{100 * outcome.accuracy:.1f} %", ""),
    ]
    found += [(f"{RUNTIMES[name]}, ms", *timing_cells(paired)) for name, paired in outcome.times.items()]
    return found


def proofs(outcome: Outcome) -> list[str]:
    """A line for each thing that was proved."""
    return [
        f"folded = branched at two input sizes: largest error {outcome.certificate.error:.1e}",
        f"same prediction on {outcome.agreeing} of {outcome.tested} test pictures",
        f"ONNX in ONNX Runtime = torch: largest error {outcome.onnx_certificate.error:.1e}",
    ]


def markdown(outcome: Outcome) -> str:
    """The results as a page of Markdown."""
    lines = ["# A branched network, folded", "", "| | branched | folded | ratio |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(outcome)]
    lines += [
        "",
        "Times of one digit on one thread: median (quartiles) of runs in turn; the ratio with its 95 % interval.",
        "",
    ]
    lines += [f"- {proof}" for proof in proofs(outcome)]
    lines += [
        "",
        f"Trained in {outcome.seconds:.0f} s. " + ("Passed." if outcome.passed else "**NOT PASSED.**"),
        "",
    ]
    lines += [f"![{name}]({name}.png)\n" for name in ("kernels", "predictions", "times")]
    return "\n".join(lines)


def write_results(outcome: Outcome, folder: Path) -> None:
    """`results.md` and `results.json`."""
    with replacing(folder / "results.json") as part:
        part.write_text(json.dumps(outcome.to_dict(), indent=2) + "\n", encoding="utf-8")
    with replacing(folder / "results.md") as part:
        part.write_text(markdown(outcome), encoding="utf-8")


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
