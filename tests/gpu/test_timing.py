"""Times on a GPU: a run is over when its result is there, and what is chosen by the clock is chosen there."""

import copy

import pytest
import torch
from torch import Tensor, nn

import unbranch
from tests.gpu.devices import on_gpu
from tests.support import fold_error, randomize
from unbranch.blocks import RepVGGBlock
from unbranch.deploy.bench import benchmark
from unbranch.fold.precision import full_precision
from unbranch.runtimes.modules import torch_run
from unbranch.runtimes.timing import least_time

pytestmark = pytest.mark.gpu


class Busy(nn.Module):
    """Keeps the GPU busy for so many of its cycles, and returns at once."""

    def __init__(self, cycles: int) -> None:
        super().__init__()
        self.cycles = cycles

    def forward(self, x: Tensor) -> Tensor:
        torch.cuda._sleep(self.cycles)
        return x + 1


def test_a_run_ends_with_its_work() -> None:
    x = torch.zeros(1, device="cuda")
    short, long = (
        least_time(torch_run(Busy(cycles), (x,)), samples=3, warmup=1) for cycles in (10_000_000, 40_000_000)
    )
    assert long > 2 * short


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_pairs_of_networks_there(runtime: str, generator: torch.Generator) -> None:
    x = torch.randn(1, 4, 9, 8, generator=generator)
    before = randomize(RepVGGBlock(4, 4).eval(), generator, x).cuda()
    after = copy.deepcopy(before)
    after.switch_to_deploy()
    times = benchmark(before, after, (x.cuda(),), [runtime], pairs=10, seconds=1)[runtime]
    assert 0 < times.low <= times.ratio <= times.high


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_the_clock_chooses_there(runtime: str, generator: torch.Generator) -> None:
    x = torch.randn(1, 4, 9, 8, generator=generator)
    block, x = randomize(RepVGGBlock(4, 4).eval(), generator, x).cuda(), x.cuda()
    folded = unbranch.reparameterize(block, x, cost="measure", runtime=runtime)
    assert on_gpu(folded)
    with torch.no_grad(), full_precision():
        assert fold_error(folded(x), block(x)) <= 1e-5
