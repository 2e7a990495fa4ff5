"""Random networks, folded and held against themselves at the recorded size and at another."""

import os

import pytest
import torch

from tests.graphs import random_network
from tests.support import fold_error
from unbranch import explain, reparameterize

SEEDS = int(os.environ.get("UNBRANCH_RANDOM_GRAPHS", "200"))
CHUNK = 20


@pytest.mark.parametrize("start", range(0, SEEDS, CHUNK))
def test_random_networks_fold_to_what_they_compute(start: int) -> None:
    places = more = 0
    for seed in range(start, min(SEEDS, start + CHUNK)):
        model, x = random_network(seed, rank=1 + seed % 3, depth=6 + seed % 9)
        folded, report = reparameterize(model, x, return_report=True)
        again = torch.cat([x, x.flip(2) * 0.5]).roll(1, dims=2)
        for value in (x, again):
            with torch.no_grad():
                expected, found = model(value), folded(value)
            for a, b in zip(found, expected, strict=True):
                assert fold_error(a, b) <= 1e-10, f"seed {seed}\n{report}"
        more += explain(folded, x).changed
        places += len(report.folded)
    assert places >= min(CHUNK, SEEDS - start), f"only {places} places folded in {CHUNK} networks"
    assert more <= 1, (
        "second folds find more: only a layer between two mirrored paddings may stay out of the first one's reach"
    )
