"""How long a run takes, two networks in turn: paired medians, their spread, and the ratio with its interval."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Run = Callable[[], object]
SHORTEST = 2e-3
"""Seconds: quicker runs are repeated within one sample, so that the clock's own steps do not show."""


@dataclass(frozen=True)
class Paired:
    """Times of `before` and `after` in milliseconds, run in turn, and the ratio before / after of the pairs.

    The medians stand beside the quartiles between which half of the runs lie; `ratio` is the median of the
    pairs' ratios, and `low` to `high` its 95 % interval, bootstrapped over pairs.
    """

    before: float
    before_quartiles: tuple[float, float]
    after: float
    after_quartiles: tuple[float, float]
    ratio: float
    low: float
    high: float
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """For machines; times in milliseconds."""
        return dict(vars(self))


def time_pair(before: Run, after: Run, *, pairs: int = 50, seconds: float = 30.0, warmup: int = 3) -> Paired:
    """Run the two in turn, `pairs` times or until `seconds` are over (ten times at least), after a warm-up.

    Each pair runs the two side by side, every second pair in the other order, so that what the machine does
    meanwhile hits both.

    Example:
        >>> time_pair(lambda: sum(range(90_000)), lambda: sum(range(30_000))).ratio > 1
        True
    """
    repeats = [_repeats(run, warmup) for run in (before, after)]
    samples: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(samples) < pairs and (len(samples) < 10 or time.perf_counter() < end):
        if len(samples) % 2 == 0:
            first = _sample(before, repeats[0])
            samples.append((first, _sample(after, repeats[1])))
        else:
            second = _sample(after, repeats[1])
            samples.append((_sample(before, repeats[0]), second))
    return summarize(samples)


def least_time(run: Run, *, samples: int = 15, warmup: int = 3) -> float:
    """The least of `samples` samples of one run alone, in seconds: what it takes when nothing else wants the machine."""
    repeats = _repeats(run, warmup)
    return min(_sample(run, repeats) for _ in range(samples))


def summarize(samples: Sequence[tuple[float, float]]) -> Paired:
    """The measures of pairs of seconds."""
    times = np.asarray(samples) * 1e3
    ratios = times[:, 0] / times[:, 1]
    draws = np.random.default_rng(0).integers(0, len(ratios), (4000, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    quartiles = np.percentile(times, [25, 75], axis=0)
    before, after = np.median(times, axis=0)
    return Paired(
        float(before),
        (float(quartiles[0, 0]), float(quartiles[1, 0])),
        float(after),
        (float(quartiles[0, 1]), float(quartiles[1, 1])),
        float(np.median(ratios)),
        float(low),
        float(high),
        len(samples),
    )


def _repeats(run: Run, warmup: int) -> int:
    """How often a run goes into one sample."""
    for _ in range(max(warmup, 1)):
        run()
    once = _sample(run, 1)
    return max(1, int(np.ceil(SHORTEST / max(once, 1e-9))))


def _sample(run: Run, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats
