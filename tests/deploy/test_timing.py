"""Times: pairs run in turn, medians, and an interval that holds what it should."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unbranch.deploy.bench import benchmark
from unbranch.deploy.runtimes import FILES, RUNTIMES, runs
from unbranch.detect.errors import InputError
from unbranch.runtimes.timing import summarize, time_pair


def test_measures_of_known_pairs() -> None:
    paired = summarize([(0.004, 0.002), (0.006, 0.002), (0.008, 0.004), (0.010, 0.004), (0.002, 0.002)])
    assert paired.before == pytest.approx(6.0)
    assert paired.after == pytest.approx(2.0)
    assert paired.ratio == pytest.approx(2.0)
    assert paired.before_quartiles == pytest.approx((4.0, 8.0))
    assert 1.0 <= paired.low <= paired.ratio <= paired.high <= 3.0
    assert paired.pairs == 5


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        noise = np.exp(draw.normal(0, 0.1, (60, 2)))
        paired = summarize([(1.5 * a, b) for a, b in noise])
        held += paired.low <= 1.5 <= paired.high
    assert 0.90 * 200 <= held <= 0.99 * 200


def test_a_slow_machine_hits_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is one that slows down halfway: the medians move, the ratio does not."""
    now = 0.0
    order: list[str] = []

    def work(name: str, seconds: float) -> None:
        nonlocal now
        order.append(name)
        now += seconds * (3 if len(order) > 30 else 1)

    monkeypatch.setattr("unbranch.runtimes.timing.time.perf_counter", lambda: now)
    paired = time_pair(lambda: work("before", 0.02), lambda: work("after", 0.01), pairs=20, seconds=1e9)
    assert paired.ratio == pytest.approx(2.0)
    assert (paired.low, paired.high) == pytest.approx((2.0, 2.0))
    assert order[-4:] in (["before", "after", "after", "before"], ["after", "before", "before", "after"])


def test_time_runs_out_but_ten_pairs_are_run() -> None:
    assert time_pair(lambda: None, lambda: None, pairs=50, seconds=0.0).pairs == 10


def test_quick_runs_are_repeated_within_a_sample() -> None:
    count = 0

    def run() -> None:
        nonlocal count
        count += 1

    time_pair(run, lambda: None, pairs=10, seconds=0.0)
    assert count > 1000


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "compile"])
def test_each_runtime_computes_what_torch_does(runtime: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 9, 9)
    with runs(runtime, (model,), (x,)) as (run,):
        found: Any = run()
    values = found[0] if runtime in FILES else found
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(values), model(x), rtol=1e-5, atol=1e-5)


def test_threads_are_as_before_afterwards() -> None:
    model = nn.Conv2d(3, 4, 3).eval()
    known = torch.get_num_threads()
    with runs("torch", (model,), (torch.zeros(1, 3, 9, 9),), threads=known + 1):
        assert torch.get_num_threads() == known + 1
    assert torch.get_num_threads() == known


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(InputError, match="'tvm' is none of torch"):
        benchmark(nn.Identity(), nn.Identity(), (torch.zeros(1),), ["tvm"])
