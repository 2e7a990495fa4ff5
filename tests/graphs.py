"""Random networks: DAGs of linear and non-linear layers by seed, for every front end.

The network is built while it runs on its example, so every layer fits what it is given. Values are shared, several are outputs, some layers
write in place, and what is added, concatenated or sliced is drawn among all values of the right shape.
"""

import random
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support import randomize

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


class Join(nn.Module):
    """A sum or a difference, in place or not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if self.kind == "add_":
            return a.add_(b)
        if self.kind == "alpha":
            return torch.add(a, b, alpha=0.5)
        return a - b if self.kind == "sub" else a + b


class Concat(nn.Module):
    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, dim=1)


class Channels(nn.Module):
    """Some channels: a slice, one chunk, or a shuffle of all."""

    def __init__(self, kind: str, at: int) -> None:
        super().__init__()
        self.kind, self.at = kind, at

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "chunk":
            return x.chunk(2, dim=1)[self.at]
        if self.kind == "slice":
            return x[:, self.at :]
        n, c = x.shape[:2]
        return x.view(n, 2, c // 2, *x.shape[2:]).transpose(1, 2).reshape(n, c, *x.shape[2:])


class Affinity(nn.Module):
    """A learnt scale and shift per channel, or a number."""

    def __init__(self, channels: int, rank: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.scale = nn.Parameter(torch.ones(channels, *(1,) * rank))
        self.shift: Tensor
        self.register_buffer("shift", torch.linspace(-1, 1, channels).reshape(1, -1, *(1,) * rank))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "number":
            return -(x * 0.75) / 1.25 + 0.5
        return (x * self.scale).add_(self.shift) if self.kind == "in place" else x * self.scale + self.shift


class Border(nn.Module):
    """A pad of zeros, of a number, or of the value itself; or a crop."""

    def __init__(self, sides: tuple[int, ...], mode: str, value: float) -> None:
        super().__init__()
        self.sides, self.mode, self.value = sides, mode, value

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.sides, mode=self.mode, value=self.value if self.mode == "constant" else None)


class FilledBorder(nn.Module):
    """A pointwise convolution whose border, one wide, is filled with its bias slab by slab, then an unpadded kernel."""

    def __init__(self, channels: int, out: int, true: bool) -> None:
        super().__init__()
        self.point, self.kernel = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(2 * channels, out, 3)
        self.true = true

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.point(x), (1, 1, 1, 1))
        fill = cast(Tensor, self.point.bias).view(1, -1, 1, 1) * (1.0 if self.true else 1.5)
        y[:, :, 0:1, :] = fill
        y[:, :, -1:, :] = fill
        y[:, :, :, 0:1] = fill
        y[:, :, :, -1:] = fill
        return self.kernel(y)


class Tokens(nn.Module):
    """A linear layer over the last axis, channels there and back."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)


class Owned(nn.Module):
    """A layer in a module that scales by itself, before the layer or behind it."""

    def __init__(self, layer: nn.Module, channels: int, rank: int, first: bool) -> None:
        super().__init__()
        self.layer, self.first = layer, first
        self.scale = nn.Parameter(torch.ones(channels, *(1,) * rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * self.scale) if self.first else self.layer(x) * self.scale


class Network(nn.Module):
    """Layers, wired."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.wires: list[tuple[int, ...]] = []
        self.outputs: list[int] = []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for layer, wires in zip(self.layers, self.wires, strict=True):
            values.append(layer(*[values[i] for i in wires]))
        return tuple(values[i] for i in self.outputs)


class _Builder:
    def __init__(self, seed: int, rank: int) -> None:
        self.draw, self.rank = random.Random(seed), rank
        self.network = Network().eval()
        size = {1: (13,), 2: (9, 12), 3: (5, 6, 7)}[rank]
        self.example = torch.randn(
            2, self.draw.choice((4, 6)), *size, generator=torch.Generator().manual_seed(seed)
        )
        self.shapes = [tuple(self.example.shape)]
        self.fresh = [False]
        """Whether a value is no view, so that it may be overwritten in any form of the network."""

    def layer(self, make: Callable[[], nn.Module], wires: Sequence[int], fresh: bool = True) -> None:
        with torch.no_grad():
            result = make().eval()
            shape = tuple(result(*[torch.zeros(self.shapes[i]) for i in wires]).shape)
        self.network.layers.append(result)
        self.network.wires.append(tuple(wires))
        self.shapes.append(shape)
        self.fresh.append(fresh)

    def convolution(self, at: int) -> None:
        channels, size = self.shapes[at][1], self.shapes[at][2:]
        out, kernel = self.draw.choice((4, 6, 8)), [self.draw.choice((1, 1, 2, 3)) for _ in size]
        dilation = self.draw.choice((1, 1, 2))
        padding = [
            self.draw.randint(0, d * (k - 1) // 2 + 1) if k > 1 else 0
            for k, d in zip(kernel, [dilation] * 3, strict=False)
        ]
        if any(n + 2 * p < dilation * (k - 1) + 1 for n, k, p in zip(size, kernel, padding, strict=True)):
            kernel, padding = [1] * self.rank, [0] * self.rank
        groups = 2 if channels % 2 == 0 and self.draw.random() < 0.3 else 1
        mode = self.draw.choice(("zeros", "zeros", "zeros", "reflect", "replicate", "circular"))
        if any(p >= n for p, n in zip(padding, size, strict=True)) or (self.rank == 3 and mode == "reflect"):
            mode = "zeros"
        stride = self.draw.choice((1, 1, 1, 2))
        bias = self.draw.random() < 0.6
        if groups == 2 and out % 2:
            groups = 1
        self.layer(
            lambda: _CONVOLUTIONS[self.rank](
                channels, out, tuple(kernel), stride, tuple(padding), dilation, groups, bias, mode
            ),
            [at],
        )

    def step(self) -> None:
        """One more layer on a value drawn among the last few."""
        at = max(0, len(self.shapes) - 1 - self.draw.choice((0, 0, 0, 1, 2, 3)))
        kinds = {
            self.convolution: 6,
            self.norm: 4,
            self.join: 5,
            self.concat: 2,
            self.channels: 2,
            self.affinity: 2,
            self.border: 1,
            self.pool: 1,
            self.tokens: 1,
            self.active: 2,
            self.filled: 1,
            self.up: 1,
            self.owned: 1,
        }
        self.draw.choices(list(kinds), list(kinds.values()))[0](at)

    def norm(self, at: int) -> None:
        affine = self.draw.random() < 0.8
        self.layer(lambda: _NORMS[self.rank](self.shapes[at][1], affine=affine), [at])

    def concat(self, at: int) -> None:
        parts = [i for i, s in enumerate(self.shapes) if s[2:] == self.shapes[at][2:] and s[1] <= 8]
        if at in parts:
            self.layer(Concat, [at, self.draw.choice(parts)])

    def channels(self, at: int) -> None:
        kind, which = self.draw.choice(("chunk", "slice", "shuffle")), self.draw.randint(0, 1)
        if self.shapes[at][1] % 2 == 0:
            self.layer(lambda: Channels(kind, which), [at], fresh=False)

    def affinity(self, at: int) -> None:
        kind = self.draw.choice(("plain", "in place", "number"))
        self.layer(lambda: Affinity(self.shapes[at][1], self.rank, kind), [at])

    def pool(self, at: int) -> None:
        stride, padding = self.draw.choice((1, 2)), self.draw.choice((0, 1))
        if min(self.shapes[at][2:]) >= 3:
            self.layer(lambda: _POOLS[self.rank](3, stride, padding), [at])

    def tokens(self, at: int) -> None:
        self.layer(lambda: Tokens(self.shapes[at][1], self.draw.choice((4, 6))), [at], fresh=False)

    def active(self, at: int) -> None:
        self.layer(self.draw.choice((nn.ReLU, nn.Hardswish)), [at])

    def filled(self, at: int) -> None:
        out, true = self.draw.choice((4, 6)), self.draw.random() < 0.8
        if self.rank == 2:
            self.layer(lambda: FilledBorder(self.shapes[at][1], out, true), [at])

    def up(self, at: int) -> None:
        stride, bias = self.draw.choice((1, 2)), self.draw.random() < 0.5
        if max(self.shapes[at][2:]) <= 16:
            self.layer(lambda: _TRANSPOSED[self.rank](self.shapes[at][1], 4, 2, stride, bias=bias), [at])

    def owned(self, at: int) -> None:
        channels, out, first = self.shapes[at][1], self.draw.choice((4, 6)), self.draw.random() < 0.5
        self.layer(
            lambda: Owned(
                _CONVOLUTIONS[self.rank](channels, out, 1), channels if first else out, self.rank, first
            ),
            [at],
        )

    def join(self, at: int) -> None:
        same = [i for i, shape in enumerate(self.shapes) if shape == self.shapes[at]]
        kind = self.draw.choice(("add", "add", "sub", "alpha", "add_"))
        if kind == "add_" and not self.fresh[at]:
            kind = "add"
        self.layer(lambda: Join(kind), [at, self.draw.choice(same)], fresh=kind != "add_")
        if kind == "add_":
            self.fresh[at] = False

    def border(self, at: int) -> None:
        size = self.shapes[at][2:]
        mode = self.draw.choice(("constant", "constant", "reflect", "replicate", "circular"))
        low = -1 if mode == "constant" and min(size) > 4 else 0
        sides = tuple(self.draw.randint(low, 1) for _ in range(2 * self.rank))
        if min(size) > 2:
            self.layer(lambda: Border(sides, mode, self.draw.choice((0.0, 0.0, 0.5))), [at])


def random_network(seed: int, rank: int = 2, depth: int = 10) -> tuple[nn.Module, Tensor]:
    """A network in eval mode, its weights and norms drawn, in float64, and an input that it takes. The same for the same seed."""
    builder = _Builder(seed, rank)
    while len(builder.network.layers) < depth:
        builder.step()
    network = builder.network
    read = {i for wires in network.wires for i in wires}
    network.outputs = [i for i in range(1, len(builder.shapes)) if i not in read]
    inner = builder.draw.randrange(1, len(builder.shapes))
    if builder.draw.random() < 0.3 and inner not in network.outputs:
        network.outputs.append(inner)
    example = builder.example.double()
    randomize(network.double(), torch.Generator().manual_seed(seed), example.clone())
    return network, example
