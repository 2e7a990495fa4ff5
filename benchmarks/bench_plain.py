"""A folded RepVGG-A0 and MobileOne-S0 against the same plain networks written by hand: the same ops, the same time.

    python benchmarks/bench_plain.py [PAIRS]

The ops that run are compared one by one and the outputs to the last bit: it ends with 1 where they differ. The times are of runs in
turn on one thread, 1x3x224x224, PAIRS in each of twelve places of memory; the last column says whether the 95 % interval of the
ratio, bootstrapped over the places, holds 1.0. Eager torch pays some 4 us for every call of a module, so there a block's own calls
show; compiled and in ONNX Runtime they do not exist.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from results import publish
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import unbranch
from unbranch.deploy.bench import benchmark
from unbranch.fold.certificate import fold_error
from unbranch.runtimes.timing import Paired

RUNTIMES = ("torch", "compile", "onnxruntime")
PLACES = 12


class Layer(nn.Module):
    """relu(conv(x))."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and rectify."""
        return self.relu(self.conv(x))


class Plain(nn.Module):
    """A stem, stages of layers, the mean over the map, a linear layer."""

    def __init__(self, stages: list[list[Layer]], width: int) -> None:
        super().__init__()
        self.stem = Layer(3, 48, 3, 2)
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


def plain_repvgg_a0() -> Plain:
    """22 convolutions of 3x3."""
    stages, c_in = [], 48
    for depth, width in ((2, 48), (4, 96), (14, 192), (1, 1280)):
        stages.append([Layer(width if i else c_in, width, 3, 1 if i else 2) for i in range(depth)])
        c_in = width
    return Plain(stages, c_in)


def plain_mobileone_s0() -> Plain:
    """A 3x3, then depthwise 3x3 and 1x1 in turn."""
    stages, c_in = [], 48
    for depth, width in ((2, 48), (8, 128), (10, 256), (1, 1024)):
        stage: list[Layer] = []
        for i in range(depth):
            own = width if i else c_in
            stage += [Layer(own, own, 3, 1 if i else 2, groups=own), Layer(own, width, 1)]
        stages.append(stage)
        c_in = width
    return Plain(stages, c_in)


class Log(TorchDispatchMode):
    """Every op that runs, with the shapes and numbers it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the op and run it."""
        shown = [tuple(a.shape) if isinstance(a, Tensor) else a for a in args]
        self.ops.append(f"{func} {shown}")
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def ops(model: nn.Module, x: Tensor) -> list[str]:
    """The ops of one run."""
    with Log() as log:
        model(x)
    return log.ops


def placed(folded: nn.Module, plain: nn.Module, x: Tensor, runtime: str, pairs: int) -> Paired:
    """Times in `PLACES` places of memory, each network made and run first in turn: the interval is over the places' ratios.

    Where weights lie moves a convolution's time by up to 1 %, the same way in every run of one process.
    """
    found, ratios = [], []
    for place in range(PLACES):
        order = (folded, plain) if place % 2 else (plain, folded)
        first, second = (copy.deepcopy(model) for model in order)
        times = benchmark(first, second, (x,), (runtime,), pairs=pairs, seconds=60.0)[runtime]
        found.append(times if place % 2 else _turned(times))
        ratios.append(times.ratio if place % 2 else 1 / times.ratio)
    drawn = np.random.default_rng(0).choice(np.array(ratios), (10_000, PLACES)).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    fastest = min(found, key=lambda times: times.before)
    return replace(
        fastest, ratio=float(np.mean(ratios)), low=float(low), high=float(high), pairs=pairs * PLACES
    )


def _turned(times: Paired) -> Paired:
    """With the second network as the first."""
    return replace(
        times,
        before=times.after,
        before_quartiles=times.after_quartiles,
        after=times.before,
        after_quartiles=times.before_quartiles,
    )


NETWORKS: dict[str, Callable[[], Plain]] = {"repvgg_a0": plain_repvgg_a0, "mobileone_s0": plain_mobileone_s0}


def main(pairs: int) -> int:
    """Compare and time both networks."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = torch.randn(1, 3, 224, 224)
    rows, data, good = [], {}, True
    for name, make in NETWORKS.items():
        folded = unbranch.reparameterize(unbranch.models.create(name).eval(), x)
        plain = make().eval()
        tensors = zip(plain.state_dict(), folded.state_dict().values(), strict=True)
        plain.load_state_dict(dict(tensors))
        ours, theirs = ops(folded, x), ops(plain, x)
        with torch.no_grad():
            error = fold_error(folded(x), plain(x))
        times = {runtime: placed(folded, plain, x, runtime, pairs) for runtime in RUNTIMES}
        good = good and ours == theirs and error == 0
        same = f"{len(ours)} {'=' if ours == theirs else '!='} {len(theirs)}"
        for runtime, t in times.items():
            ratio = f"{t.ratio:.3f} {t.low:.3f}-{t.high:.3f}"
            holds = "yes" if t.low <= 1 <= t.high else "NO"
            rows.append((name, same, runtime, f"{t.before:.2f}", f"{t.after:.2f}", ratio, holds))
        data[name] = {
            "ops_folded": len(ours),
            "ops_plain": len(theirs),
            "same_ops": ours == theirs,
            "error": error,
            "milliseconds": {runtime: t.to_dict() for runtime, t in times.items()},
        }
    headers = ("network", "ops", "in", "folded", "plain ms", "ratio, 95 %", "1.0")
    publish("plain", headers, rows, {"networks": data})
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
