"""Before and after, side by side, in every runtime that is asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from unbranch.deploy.runtimes import RUNTIMES, runs
from unbranch.runtimes.timing import Paired, time_pair


def benchmark(
    before: nn.Module | Path,
    after: nn.Module | Path,
    inputs: Sequence[Tensor],
    runtimes: Sequence[str] = tuple(RUNTIMES),
    *,
    threads: int = 1,
    pairs: int = 50,
    seconds: float = 30.0,
    starting: Callable[[str], object] = lambda runtime: None,
) -> dict[str, Paired]:
    """`Paired` times of both networks on `inputs`, by runtime; `starting` is told of each before it runs.

    Raises `InputError` for an unknown runtime, ModuleNotFoundError for one that is not installed.
    """
    found = {}
    for runtime in runtimes:
        starting(runtime)
        with runs(runtime, (before, after), inputs, threads) as (first, second):
            found[runtime] = time_pair(first, second, pairs=pairs, seconds=seconds)
    return found
