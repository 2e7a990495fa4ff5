"""A folded RepVGG-A0 and MobileOne-S0 against the same plain networks written by hand: the same ops, the same time.

    python benchmarks/bench_plain.py [PAIRS]

The ops that run are compared one by one. The times are of runs in turn on one thread, 1x3x224x224; the bootstrapped 95 %
interval of the ratio has to hold 1.0. Ends with 1 where something differs.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from results import publish
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import unbranch
from unbranch.deploy.bench import benchmark
from unbranch.fold.certificate import fold_error


class Plain(nn.Module):
    """Convolutions with ReLU, the mean over the map, a linear layer."""

    def __init__(self, layers: list[nn.Module], width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.layers(x).mean((2, 3)))


def convolution(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """One layer of a plain network."""
    return [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups), nn.ReLU(inplace=True)]


def plain_repvgg_a0() -> Plain:
    """22 convolutions of 3x3."""
    layers, c_in = convolution(3, 48, 3, 2), 48
    for depth, width in ((2, 48), (4, 96), (14, 192), (1, 1280)):
        for i in range(depth):
            layers += convolution(c_in, width, 3, 2 if i == 0 else 1)
            c_in = width
    return Plain(layers, c_in)


def plain_mobileone_s0() -> Plain:
    """A 3x3, then depthwise 3x3 and 1x1 in turn."""
    layers, c_in = convolution(3, 48, 3, 2), 48
    for depth, width in ((2, 48), (8, 128), (10, 256), (1, 1024)):
        for i in range(depth):
            layers += convolution(c_in, c_in, 3, 2 if i == 0 else 1, groups=c_in)
            layers += convolution(c_in, width, 1)
            c_in = width
    return Plain(layers, c_in)


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
        times = benchmark(folded, plain, (x,), ("torch", "onnxruntime"), pairs=pairs, seconds=120.0)
        good = good and ours == theirs and error == 0 and all(t.low <= 1 <= t.high for t in times.values())
        for runtime, t in times.items():
            ratio = f"{t.ratio:.3f} {t.low:.3f}-{t.high:.3f}"
            same = f"{len(ours)} = {len(theirs)}" if ours == theirs else f"{len(ours)} != {len(theirs)}"
            rows.append(
                (
                    name,
                    same,
                    f"{error:.0e}",
                    runtime.removesuffix("runtime"),
                    f"{t.before:.2f}",
                    f"{t.after:.2f}",
                    ratio,
                )
            )
        data[name] = {
            "ops_folded": len(ours),
            "ops_plain": len(theirs),
            "same_ops": ours == theirs,
            "error": error,
            "milliseconds": {runtime: t.to_dict() for runtime, t in times.items()},
        }
    headers = ("network", "ops", "error", "in", "folded ms", "plain ms", "ratio, 95 %")
    publish("plain", headers, rows, {"networks": data})
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
