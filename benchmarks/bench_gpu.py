"""On a GPU: what branches cost while they train, over the plain network; and how much faster a folded network runs.

    python benchmarks/bench_gpu.py [ROUNDS [NETWORK ...]]

A step is forward, cross entropy, backward and SGD with momentum on 64 pictures of 224 px in channels-last: in float32, whose convolutions
torch lets round to TF32 on its own, and under bfloat16 autocast, where nothing is merged. The plain network has one convolution and one
batch norm where the other has a block. All take a step in turn, ROUNDS times; a ratio is the median over the rounds, with its bootstrapped
95 % interval. Peak is the most that a step holds beyond what lies there before it. Inference is before and after folding, in turn, by
torch as it is and by torch.compile. Where there is no GPU, it says so and ends.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import torch
from bench_training import NETWORKS, plain
from results import publish
from torch import Tensor, nn

import unbranch
from unbranch.blocks import MobileOneBlock, RepVGGBlock
from unbranch.deploy.bench import benchmark
from unbranch.models import create
from unbranch.runtimes.timing import summarize

BATCH, SIZE, CLASSES = 64, 224, 1000
FORMS = ("plain", "branches", "merged")
LAST = torch.channels_last


class Contender:
    """A network on the GPU, its optimizer and how a step of it is taken."""

    def __init__(self, network: str, form: str, autocast: bool) -> None:
        kind = MobileOneBlock if network.startswith("mobileone") else RepVGGBlock
        block = plain if form == "plain" else partial(kind, training=form)
        torch.manual_seed(0)
        model = create(network, num_classes=CLASSES, block=block)
        self.model = model.to("cuda").to(memory_format=LAST)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, momentum=0.9)
        self.autocast = autocast

    def step(self, x: Tensor, labels: Tensor) -> float:
        """Seconds of one step."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16) if self.autocast else nullcontext():
            loss = nn.functional.cross_entropy(self.model(x), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def peak(self, x: Tensor, labels: Tensor) -> float:
        """MiB that a step needs."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.step(x, labels)
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def training(network: str, rounds: int, autocast: bool) -> dict[str, Any]:
    """Times of every form beside the plain network's, and the memory of each."""
    forms = {form: Contender(network, form, autocast) for form in FORMS}
    x = torch.randn(BATCH, 3, SIZE, SIZE, device="cuda").contiguous(memory_format=LAST)
    labels = torch.arange(BATCH, device="cuda")
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for turn in range(-3, rounds):
        for form in list(forms) if turn % 2 else list(reversed(forms)):
            taken = forms[form].step(x, labels)
            if turn >= 0:
                seconds[form].append(taken)
    pairs = {form: list(zip(own, seconds["plain"], strict=True)) for form, own in seconds.items()}
    return {form: summarize(pairs[form]).to_dict() | {"peak": forms[form].peak(x, labels)} for form in forms}


def inference(network: str, batch: int, dtype: torch.dtype, runtime: str) -> dict[str, Any]:
    """Times before and after folding."""
    model = create(network).eval().to("cuda", dtype).to(memory_format=LAST)
    x = torch.randn(batch, 3, SIZE, SIZE).to("cuda", dtype, memory_format=LAST)
    folded = unbranch.reparameterize(model, x)
    torch.compiler.reset()
    return benchmark(model, folded, (x,), [runtime], seconds=3)[runtime].to_dict()


def train(networks: Sequence[str], rounds: int) -> None:
    """Publish steps."""
    rows, data = [], {}
    for network in networks:
        for autocast in (False, True):
            how = "bfloat16 autocast" if autocast else "float32"
            for form, t in training(network, rounds, autocast).items():
                data[f"{network}, {how}, {form}"] = t
                rows.append((network, how, form, f"{t['before']:.1f}", _ratio(t), f"{t['peak']:.0f}"))
            torch.cuda.empty_cache()
    headers = ("network", "precision", "form", "step ms", "over plain, 95 %", "peak MiB")
    publish("gpu_training", headers, rows, {"gpu": torch.cuda.get_device_name(), "steps": data})


def infer(networks: Sequence[str], runtime: str) -> None:
    """Publish runs."""
    rows, data = [], {}
    for network, dtype, batch in product(networks, (torch.float32, torch.float16), (1, BATCH)):
        t = inference(network, batch, dtype, runtime)
        name = str(dtype).removeprefix("torch.")
        data[f"{network}, {name}, {batch}"] = t
        rows.append((network, name, str(batch), f"{t['before']:.2f}", f"{t['after']:.2f}", _ratio(t)))
    headers = ("network", "dtype", "batch", "before ms", "after ms", "before / after, 95 %")
    publish(f"gpu_{runtime}", headers, rows, {"gpu": torch.cuda.get_device_name(), "times": data})


def _ratio(t: dict[str, Any]) -> str:
    return f"{t['ratio']:.2f} {t['low']:.2f}-{t['high']:.2f}"


def main(rounds: int, networks: Sequence[str]) -> int:
    """Steps, then runs; what is compiled comes last, for it takes minutes."""
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing to measure")
        return 0
    train(networks, rounds)
    for runtime in ("torch", "compile"):
        infer(networks, runtime)
    return 0


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(int(given[0]) if given else 10, given[1:] or NETWORKS))
