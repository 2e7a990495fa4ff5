"""What merging costs and what it saves, in multiply-adds, so that ``training="auto"`` merges where it pays.

What is no product counts as the multiply-adds that take as long, of float32 in matrices on one core of a CPU with AVX-512.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from unbranch.blocks.merged.terms import Window

NORM = 90
"""A batch norm and its place in the sum, for each value: forward and backward."""
PASS = 8
"""A value of the input read, made less by its mean and written."""
ENTRY = 400
"""An entry of a kernel on the window: the fold and its gradients, products aside."""
KEPT = 420
"""A value that is not kept for backward, where branches keep more than the plain network does; of one branch only, as more of them save
work enough."""
WINDOW, CHANNEL, CALL = 210, 80_000, 20_000_000
"""The compiled depthwise kernels: for each output, for each channel, and for a block, over a plain depthwise convolution."""
BRANCH = 150
"""A depthwise branch with its norm and its place in the sum, for each output."""


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of a training step that merging adds and that it saves; ``memory`` is what it may cost for memory's sake."""

    adds: float
    saves: float
    memory: float

    @property
    def pays(self) -> bool:
        """Whether merging is the better bargain."""
        return self.adds < self.saves + self.memory


def cost(
    road: str, terms: Sequence[Window], window: Window, outputs: int, channels: int, keeps_other: bool
) -> Cost:
    """Of merging ``terms`` on ``window``, for M ``outputs`` in all pictures; ``keeps_other``: another convolution stays beside them.

    With B kernels, T norms, G groups of D values in a patch and C_out outputs, moments and their use in backward take 2 M G D^2, the fold
    and its gradients 2 B C_out D^2; B - 1 convolutions less save 3 (B - 1) M D C_out, or fewer where they have fewer taps.
    """
    out = window.outputs
    values = outputs * out
    inner = channels // window.groups
    depth = window.depth(channels)
    taps = [term.taps for term in terms if term.has_kernel]
    kernels = len(taps)
    more_kept = KEPT * values * (kernels > (0 if keeps_other else 1))
    if road == "depthwise":
        return Cost(WINDOW * values + CHANNEL * out + CALL, BRANCH * (len(terms) - 1) * values, more_kept)
    moments = outputs * depth * window.groups * (2 * depth + 2 * PASS)
    folding = kernels * out * depth * (2 * depth + ENTRY)
    convolutions = 3 * outputs * inner * (sum(taps) - window.taps) * out
    return Cost(moments + folding, convolutions + NORM * len(terms) * values, more_kept)
