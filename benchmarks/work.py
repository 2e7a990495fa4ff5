"""Calibrate ELEMENT: what moving one element to or from memory costs, in multiply-adds.

    python benchmarks/work.py [ROUNDS]

Convolutions, sums and norms of many shapes run in turn on one thread. Their times are fitted, by relative least squares, with
seconds = a * multiply-adds + b * elements read and written; ELEMENT is b / a. Depthwise kernels are shown beside the fit and left
out of it: they do their few multiply-adds many times slower than dense ones do. Run once when the constant is chosen.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from results import publish
from torch import nn

from unbranch.affine import ELEMENT


def cases() -> list[tuple[str, Callable[[], object], float, float]]:
    """Name, work, multiply-adds, and elements read and written."""
    found: list[tuple[str, Callable[[], object], float, float]] = []
    for channels, side in ((32, 224), (16, 112), (48, 56), (96, 56), (192, 28), (384, 14)):
        x = torch.randn(1, channels, side, side)
        elements = 2.0 * x.numel()
        for kernel, groups in ((1, 1), (3, 1), (3, channels), (5, channels)):
            layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups).eval()
            macs = float(x.numel() * channels // groups * kernel**2)
            found.append(
                (
                    f"{'conv' if groups == 1 else 'depthwise conv'} {kernel}x{kernel} {channels} at {side}",
                    lambda f=layer, x=x: f(x),
                    macs,
                    elements,
                )
            )
        other = torch.randn_like(x)
        found.append((f"sum {channels} at {side}", lambda x=x, y=other: x + y, 0.0, 1.5 * elements))
        norm = nn.BatchNorm2d(channels).eval()
        found.append((f"norm {channels} at {side}", lambda f=norm, x=x: f(x), float(x.numel()), elements))
    return found


@torch.inference_mode()
def main(rounds: int) -> int:
    """Measure, fit, print."""
    torch.set_num_threads(1)
    work = cases()
    times = np.zeros((rounds, len(work)))
    for turn in range(-1, rounds):
        for i, (_, run, _, _) in enumerate(work):
            start = time.perf_counter()
            for _ in range(5):
                run()
            if turn >= 0:
                times[turn, i] = (time.perf_counter() - start) / 5
    seconds = np.median(times, axis=0)
    terms = np.array([(macs, elements) for _, _, macs, elements in work])
    fitted = np.array(["depthwise" not in name for name, *_ in work])
    weighted = (terms / seconds[:, None])[fitted]
    (a, b), *_ = np.linalg.lstsq(weighted, np.ones(len(weighted)), rcond=None)
    spread = np.abs(np.log((terms @ np.array([a, b])) / seconds))[fitted]
    rows = [
        (name, f"{1e6 * s:.0f}", f"{1e6 * (a * macs + b * elements):.0f}")
        for (name, _, macs, elements), s in zip(work, seconds, strict=True)
    ]
    publish(
        "work", ("case", "measured us", "fitted us"), rows, {"element": b / a, "seconds_per_multiply_add": a}
    )
    print(
        f"ELEMENT = {b / a:.1f} (in the code: {ELEMENT}); a fitted time is off by a factor of {np.exp(np.median(spread)):.2f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
