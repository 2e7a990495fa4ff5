"""How long folding takes, beside timm's own reparameterize_model, on the same timm networks.

    python benchmarks/bench_fold_time.py [ROUNDS]

Both fold copies of the same network in place, in turn. Ours has to find out what the network does, by recording a run: that part
is timed by itself and taken off, and both figures are shown. Verifying is no part of either.
"""

import copy
import sys
import time
from collections.abc import Callable

import numpy as np
import timm
import torch
from results import publish
from timm.utils.model import reparameterize_model
from torch import nn

import unbranch
from unbranch.frontends.modules import record

NETWORKS = (
    "repvgg_a0",
    "repvgg_b1g4",
    "mobileone_s0",
    "mobileone_s4",
    "repvit_m0_9",
    "fastvit_t8",
    "repghostnet_100",
)


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def once(model: nn.Module, x: torch.Tensor) -> tuple[float, float, float]:
    """Seconds of theirs, of ours, and of ours without recording."""
    theirs, ours = copy.deepcopy(model), copy.deepcopy(model)
    first = seconds(lambda: reparameterize_model(theirs, inplace=True))
    recording = seconds(lambda: record(ours, (x,)))
    whole = seconds(lambda: unbranch.reparameterize_(ours, x))
    return first, whole, whole - recording


def main(rounds: int) -> int:
    """Time every network."""
    torch.set_num_threads(1)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    rows, data = [], {}
    for name in NETWORKS:
        model = timm.create_model(name).eval()
        once(model, x)
        times = np.array([once(model, x) for _ in range(rounds)])
        theirs, whole, ours = np.median(times, axis=0)
        ratio = np.median(times[:, 2] / times[:, 0])
        rows.append((name, f"{theirs:.3f}", f"{ours:.3f}", f"{ratio:.2f}", f"{whole:.3f}"))
        data[name] = {
            "timm": theirs,
            "ours": ours,
            "ratio": ratio,
            "ours_with_recording": whole,
            "rounds": rounds,
        }
    headers = ("network", "timm s", "ours s", "ours / timm", "with recording s")
    publish("fold_time", headers, rows, {"networks": data})
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7))
