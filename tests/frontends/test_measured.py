"""``cost="measure"``: the planner compares what a clock says, equal parts are timed once, and the result is as exact as any."""

import pytest
import torch
from torch import Tensor, nn

import unbranch
from tests.support import fold_error, randomize
from unbranch.fold.interpret import interpret
from unbranch.fold.plan import plan
from unbranch.frontends.measured import MeasuredCosts
from unbranch.frontends.modules import record


class Pair(nn.Module):
    """Two equal blocks, each 3x3 + 1x1 with norms, an activation between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = unbranch.blocks.RepVGGBlock(4, 4), unbranch.blocks.RepVGGBlock(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(1, 4, 9, 8, generator=generator, dtype=torch.float64)


@pytest.fixture
def pair(generator: torch.Generator, x: Tensor) -> nn.Module:
    return randomize(Pair().double().eval(), generator, x)


@pytest.mark.parametrize(("layer_costs", "regions"), [(0.1, 2), (1e3, 0)])
def test_the_clock_decides(pair: nn.Module, x: Tensor, layer_costs: float, regions: int) -> None:
    asked = []

    def clock(module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
        assert module(*inputs).shape[0] == 1
        asked.append(module)
        return layer_costs if isinstance(module, nn.Conv2d) else 1.0

    graph = record(pair, (x,)).graph
    found = plan(interpret(graph), MeasuredCosts(graph, clock), lambda facts: {})
    assert len(found.regions) == regions
    before = len(asked)
    single = record(pair.get_submodule("first"), (x,)).graph
    plan(interpret(single), MeasuredCosts(single, clock), lambda facts: {})
    assert len(asked) - before == before  # the second block cost no further timing


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_whatever_is_chosen_is_exact(generator: torch.Generator, runtime: str) -> None:
    if runtime != "torch":
        pytest.importorskip(runtime)
    x = torch.randn(1, 4, 9, 8, generator=generator)
    block = randomize(unbranch.blocks.RepVGGBlock(4, 4).eval(), generator, x)
    folded = unbranch.reparameterize(block, x, cost="measure", runtime=runtime)
    assert fold_error(folded(x), block(x)) <= 1e-5


def test_unknown_costs_and_runtimes(pair: nn.Module, x: Tensor) -> None:
    with pytest.raises(ValueError, match="neither 'work' nor 'measure'"):
        unbranch.reparameterize(pair, x, cost="guess")
    with pytest.raises(ValueError, match="none of torch, onnxruntime, openvino"):
        unbranch.reparameterize(pair, x, cost="measure", runtime="abacus")
    with pytest.raises(ValueError, match="none of torch, onnxruntime, openvino"):
        unbranch.reparameterize(pair, x, runtime="abacus")
