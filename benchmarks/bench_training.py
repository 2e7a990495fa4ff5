"""What branches cost while they train: a step of a branched network, over a step of the plain one it is shipped as.

    python benchmarks/bench_training.py [ROUNDS [THREADS [NETWORK ...]]]

A step is forward, cross entropy, backward and SGD with momentum, on 16 pictures of 128 px in channels-last. The plain network has one
convolution and one batch norm where the other has a block. `merged` is training="auto" with the compiled depthwise kernels, `torch` the
same without them, `branches` never merges. All four take a step in turn, ROUNDS times; a ratio is the median over the rounds, with its
bootstrapped 95 % interval; on one thread of the process's own CPU seconds, so that whoever else is on the machine counts less. Kept is
what autograd holds for backward, in MiB, parameters and buffers aside.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from results import publish
from torch import Tensor, nn

from unbranch.blocks import MobileOneBlock, RepVGGBlock
from unbranch.blocks.merged import compiled
from unbranch.models import create
from unbranch.runtimes.timing import summarize

NETWORKS = ("mobileone_s0", "mobileone_s1", "repvgg_a0")
BATCH, SIZE, CLASSES = 16, 128, 1000
FORMS: dict[str, dict[str, Any]] = {
    "merged": {"training": "auto"},
    "torch": {"training": "auto"},
    "branches": {"training": "branches"},
}


def plain(
    c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, **branching: object
) -> nn.Module:
    """relu(norm(conv(x))): what a block is shipped as, with the norm that a plain network trains with."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


@contextmanager
def kernels(wanted: bool) -> Iterator[None]:
    """With or without the compiled kernels."""
    os.environ[compiled.OFF] = str(int(wanted))
    compiled.unavailable.cache_clear()
    try:
        yield
    finally:
        del os.environ[compiled.OFF]
        compiled.unavailable.cache_clear()


class Contender:
    """A network, its optimizer and how a step of it is taken."""

    def __init__(self, network: str, form: str) -> None:
        block: Callable[..., nn.Module] = plain
        if form != "plain":
            kind = MobileOneBlock if network.startswith("mobileone") else RepVGGBlock
            block = partial(kind, **FORMS[form])
        torch.manual_seed(0)
        self.model = create(network, num_classes=CLASSES, block=block).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, momentum=0.9)
        self.compiles = form != "torch"

    def step(self, x: Tensor, labels: Tensor) -> None:
        """One step."""
        with nullcontext() if self.compiles else kernels(False):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), labels).backward()
            self.optimizer.step()

    def kept(self, x: Tensor) -> float:
        """MiB that autograd holds after forward."""
        own = {t.untyped_storage().data_ptr() for t in (*self.model.parameters(), *self.model.buffers())}
        held: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with nullcontext() if self.compiles else kernels(False), hooks:
            logits = self.model(x)
        del logits
        return sum(held.values()) / 2**20


def compare(network: str, rounds: int) -> dict[str, Any]:
    """Times of every form over the plain network's, and what each keeps."""
    forms = {form: Contender(network, form) for form in ("plain", *FORMS)}
    x = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for turn in range(-2, rounds):
        order: Sequence[str] = list(forms) if turn % 2 else list(reversed(forms))
        for form in order:
            start = clock()
            forms[form].step(x, labels)
            if turn >= 0:
                seconds[form].append(clock() - start)
    kept = {form: contender.kept(x) for form, contender in forms.items()}
    times = {
        form: summarize(list(zip(own, seconds["plain"], strict=True))).to_dict()
        for form, own in seconds.items()
    }
    return {"milliseconds": times, "kept": kept}


def main(rounds: int, threads: int, networks: Sequence[str]) -> int:
    """Compare every network."""
    torch.set_num_threads(threads)
    why = compiled.unavailable()
    print(f"compiled kernels: {why or 'there'}; {threads} thread(s)")
    rows, data = [], {}
    for network in networks:
        found = data[network] = compare(network, rounds)
        for form, t in found["milliseconds"].items():
            ratio = f"{t['ratio']:.2f} {t['low']:.2f}-{t['high']:.2f}"
            rows.append((network, form, f"{t['before']:.0f}", ratio, f"{found['kept'][form]:.0f}"))
    publish(
        "training",
        ("network", "form", "step ms", "over plain, 95 %", "kept MiB"),
        rows,
        {"networks": data, "rounds": rounds},
    )
    return 0


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(
        main(
            int(given[0]) if given else 20,
            int(given[1]) if len(given) > 1 else 1,
            given[2:] or NETWORKS,
        )
    )
