"""How time and memory of a fold grow with depth and width, and what the largest of our networks take.

    python benchmarks/bench_growth.py [ROUNDS]

RepVGG blocks one after the other, deeper and wider, and the RepVGG networks of most parameters. Each is folded in a process of its
own on one thread. Seconds are the process's own, recording taken off; memory is what the process holds at most while it folds, the
original and its folded copy included, over the memory of the original; below some 10 M parameters that is mostly what a process
holds anyway. The goals are 2 s up to 100 M parameters and 3 times: the last column says where one is missed.
"""

import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from results import publish
from torch import nn

import unbranch
from unbranch import blocks, models
from unbranch.frontends.modules import record

GOAL_SECONDS, GOAL_PARAMETERS, GOAL_MEMORY = 2.0, 100e6, 3.0
DEPTHS, WIDTHS = (4, 8, 16, 32, 64), (64, 128, 256, 512, 1024)
USUAL_DEPTH, USUAL_WIDTH = 8, 256
NETWORKS = ("repvgg_a0", "repvgg_b1g4", "repvgg_b1", "repvgg_b2g2", "repvgg_b2", "repvgg_b3g2", "repvgg_b3")
SIDE = 32
"""Of the example image: what recording holds for the activations counts too, and is small here."""


def stack(depth: int, width: int) -> nn.Module:
    """So many blocks of so many channels."""
    return nn.Sequential(*(blocks.RepVGGBlock(width, width, 3) for _ in range(depth))).eval()


def cases() -> dict[str, tuple[Callable[[], nn.Module], int]]:
    """How to make each network, and the channels of its input."""
    found: dict[str, tuple[Callable[[], nn.Module], int]] = {}
    for depth in DEPTHS:
        found[f"{depth} blocks of {USUAL_WIDTH}"] = (lambda d=depth: stack(d, USUAL_WIDTH)), USUAL_WIDTH
    for width in WIDTHS:
        found[f"{USUAL_DEPTH} blocks of {width}"] = (lambda w=width: stack(USUAL_DEPTH, w)), width
    for name in NETWORKS:
        found[name] = (lambda n=name: models.create(n).eval()), 3
    return found


def held(what: str) -> int:
    """Bytes that the process holds (VmRSS), or held at most (VmHWM)."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    if found is None:
        raise RuntimeError(f"/proc/self/status says nothing of {what}: this runs on Linux")
    return int(found[1]) * 1024


def fold(name: str) -> tuple[float, float, float, float]:
    """Parameters, CPU seconds without and with recording, and memory over that of the network: one fold."""
    torch.set_num_threads(1)
    unbranch.reparameterize(
        stack(2, 8), torch.zeros(1, 8, SIDE, SIDE)
    )  # the first call of a process warms it up
    make, channels = cases()[name]
    before = held("VmRSS")
    model = make()
    own = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    x = torch.zeros(1, channels, SIDE, SIDE)
    record(model, (x,))
    start = time.process_time()
    record(model, (x,))
    recording = time.process_time() - start
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    start = time.process_time()
    folded = unbranch.reparameterize(model, x)
    whole = time.process_time() - start
    peak = held("VmHWM") - before
    assert folded is not model
    return sum(p.numel() for p in model.parameters()), whole - recording, whole, peak / own


def main(rounds: int) -> int:
    """Measure every network, each round in a fresh process."""
    rows, data, missed = [], {}, []
    context = multiprocessing.get_context("spawn")
    for name in cases():
        found = []
        for _ in range(rounds):
            with context.Pool(1) as pool:
                found.append(pool.apply(fold, (name,)))
        parameters, seconds, whole, memory = np.median(np.array(found), axis=0)
        late = parameters <= GOAL_PARAMETERS and seconds >= GOAL_SECONDS
        goals = [word for word, is_missed in (("time", late), ("memory", memory >= GOAL_MEMORY)) if is_missed]
        figures = (f"{parameters / 1e6:.1f}", f"{seconds:.2f}", f"{whole:.2f}", f"{memory:.2f}")
        rows.append((name, *figures, ", ".join(goals)))
        data[name] = {
            "parameters": parameters,
            "seconds": seconds,
            "with_recording": whole,
            "memory": memory,
            "rounds": rounds,
        }
        if goals:
            missed.append(name)
    headers = ("network", "parameters M", "seconds", "with recording", "memory / network", "missed")
    publish("growth", headers, rows, {"networks": data, "missed": missed})
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
