"""Models with symbolic dimensions: what holds at every size folds, what follows from one size does not."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.frontends.onnx.models import exported, exported_by_dynamo, folded, ops, written
from tests.graphs import FilledBorder
from tests.support import randomize

CONV = "c = BatchNormalization (b, g1, b1, m1, var1)"
NORM = dict.fromkeys(("g1", "b1", "m1", "var1"), (4,))
FREE = "(double[n,4,h,w] x) => (double[n,4,p,q] y)"
SIZES = ({"n": 1, "h": 9, "w": 11}, {"n": 2, "h": 6, "w": 17}, {"n": 3, "h": 32, "w": 5})


def test_a_channel_shuffle_by_computed_sizes_folds() -> None:
    text = f"""g {FREE} {{
        a = Conv (x, w1)
        nn = Shape <start = 0, end = 1> (a) hw = Shape <start = 2> (a)
        t1 = Concat <axis = 0> (nn, two, two, hw) t2 = Concat <axis = 0> (nn, four, hw)
        r = Reshape (a, t1) s = Transpose <perm = [0, 2, 1, 3, 4]> (r) u = Reshape (s, t2) y = Conv (u, w2)
    }}"""
    weights = {"w1": (4, 4, 1, 1), "w2": (4, 4, 3, 3), "two": np.array([2]), "four": np.array([4])}
    assert ops(folded(written(text, weights), *SIZES)[0]) == {"Conv": 1}


# Each of these is linear at some sizes and not at others, or another map at each.
TRAPS: dict[str, tuple[str, dict[str, object]]] = {
    "stride and auto_pad": (
        'a = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w3) y = Mul (a, k)',
        {"w3": (4, 4, 3, 3), "k": (4, 1, 1)},
    ),
    "padding by parity": (
        "h = Shape <start = 2, end = 3> (x) odd = Mod (h, two) z = Mul (odd, nil)"
        " pads = Concat <axis = 0> (nil, nil, odd, nil, nil, nil, nil, nil) p = Pad (x, pads) y = Conv (p, w3)",
        {"w3": (4, 4, 3, 3), "two": np.array([2]), "nil": np.array([0])},
    ),
    "padding to a least size": (
        "h = Shape <start = 2, end = 3> (x) lack = Sub (least, h) more = Max (lack, nil)"
        " pads = Concat <axis = 0> (nil, nil, nil, nil, nil, nil, more, nil) p = Pad (x, pads) y = Conv (p, w3)",
        {"w3": (4, 4, 3, 3), "least": np.array([20]), "nil": np.array([0])},
    ),
    "a crop at a fixed position": (
        "s = Slice (x, nil, stop, two) y = Conv (s, w3)",
        {"w3": (4, 4, 3, 3), "nil": np.array([0]), "stop": np.array([5]), "two": np.array([2])},
    ),
    "a scale that is a size": (
        "a = Conv (x, w3) h = Shape <start = 2, end = 3> (x) f = Cast <to = 11> (h) y = Mul (a, f)",
        {"w3": (4, 4, 3, 3)},
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_follows_from_the_size_is_left_alone(trap: str) -> None:
    body, weights = TRAPS[trap]
    words = set(body.replace(",", " ").replace("(", " ").replace(")", " ").split())
    given = {name: w for name, w in weights.items() if name in words}
    model = written(f"g {FREE} {{ {body} }}", given)  # pyright: ignore[reportArgumentType]
    after, report = folded(model, *SIZES)
    if trap not in ("padding by parity", "padding to a least size", "a crop at a fixed position"):
        assert not report.changed
    assert ops(after)["Conv"] == 1


def test_a_size_that_is_read_elsewhere_keeps_its_value() -> None:
    text = f"""g {FREE} {{
        a = Conv (x, w3) b = Conv (a, w1) r = Relu (b)
        size = Shape (a) e = Expand (half, size) y = Mul (r, e)
    }}"""
    after, report = folded(
        written(text, {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "half": np.array([0.5])}), *SIZES
    )
    assert ops(after)["Conv"] == 2
    assert any("a size inside it is read by" in refused.reason for refused in report.refused)


def test_at_a_fixed_size_it_becomes_a_constant() -> None:
    text = """g (double[1,4,7,7] x) => (double[1,4,5,5] y) {
        a = Conv (x, w3) b = Conv (a, w1) r = Relu (b) size = Shape (a) e = Expand (half, size) y = Mul (r, e)
    }"""
    after, _ = folded(written(text, {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "half": np.array([0.5])}))
    assert ops(after)["Conv"] == 1


class Shuffled(nn.Module):
    """Norms, a shuffle, a chunk and a concatenation, then tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 1, groups=2), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.first(x))
        n, c, h, w = y.shape
        y = self.second(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))
        a, b = y.chunk(2, 1)
        z = torch.cat([b, a * 0.5], 1)
        return self.last(torch.relu(z.flatten(2).transpose(1, 2))), z


DYNAMIC = {"x0": {0: "n", 2: "h", 3: "w"}}


@pytest.mark.parametrize("dynamic", [None, DYNAMIC], ids=["fixed", "dynamic"])
def test_a_shuffle_from_the_older_exporter(
    dynamic: dict[str, dict[int, str]] | None, generator: torch.Generator
) -> None:
    example = torch.randn(2, 4, 9, 11)
    network = randomize(Shuffled(), generator, example)
    after, _ = folded(exported(network, example, dynamic=dynamic), *(SIZES if dynamic else ()))
    assert ops(after)["Conv"] == 1


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_a_shuffle_from_the_newer_exporter(dynamic: bool, generator: torch.Generator) -> None:
    example = torch.randn(2, 4, 9, 11)
    network = randomize(Shuffled(), generator, example)
    sizes = [{"batch": s["n"], "high": s["h"], "wide": s["w"]} for s in SIZES] if dynamic else []
    after, _ = folded(exported_by_dynamo(network, example, dynamic=dynamic, optimize=dynamic), *sizes)
    assert ops(after)["Conv"] == 1
    assert "SplitToSequence" not in ops(after)


def test_a_border_filled_slab_by_slab_at_any_size(generator: torch.Generator) -> None:
    example = torch.randn(2, 4, 9, 11)
    network = randomize(FilledBorder(4, 6, True), generator)
    sizes = [{"batch": s["n"], "high": s["h"], "wide": s["w"]} for s in SIZES]
    assert ops(folded(exported_by_dynamo(network, example, dynamic=True), *sizes)[0]) == {"Conv": 1}


@pytest.mark.parametrize("true", [True, False])
def test_a_border_from_the_older_exporter(true: bool, generator: torch.Generator) -> None:
    network = randomize(FilledBorder(4, 6, true), generator)
    after, _ = folded(exported(network, torch.randn(2, 4, 9, 11)))
    assert ops(after)["Conv"] == (1 if true else 2)
