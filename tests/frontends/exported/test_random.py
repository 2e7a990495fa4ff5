"""Random networks, exported as they are or decomposed, with sizes that may change or not: folded and original agree."""

import os

import pytest
import torch
from torch.export import Dim

from tests.graphs import random_network
from tests.support import fold_error
from unbranch.frontends.exported import explain_exported, reparameterize_exported

SEEDS = int(os.environ.get("UNBRANCH_RANDOM_GRAPHS", "24"))
CHUNK = 6


@pytest.mark.parametrize("start", range(0, SEEDS, CHUNK))
def test_random_networks_fold_to_what_they_compute(start: int) -> None:
    places = more = read = 0
    for seed in range(start, min(SEEDS, start + CHUNK)):
        network, x = random_network(seed, rank=(2, 2, 1, 2, 3)[seed % 5])
        with torch.no_grad():
            expected = network(x.clone())
        dynamic = ({0: Dim.AUTO, 2: Dim.AUTO},) if seed % 2 else None
        try:
            program = torch.export.export(network, (x.clone(),), dynamic_shapes=dynamic)
            if seed % 3 == 2:
                program = program.run_decompositions()
            program.module()(x.clone())
        except RuntimeError:  # torch refuses some views, and its decompositions take some layouts wrongly
            continue
        folded, report = reparameterize_exported(program)
        for a, b in zip(folded.module()(x.clone()), expected, strict=True):
            assert fold_error(a, b) <= 1e-10, f"seed {seed}\n{report}"
        more += explain_exported(folded).changed
        places += len(report.folded)
        read += 1
    assert read >= min(CHUNK, SEEDS - start) - 1
    assert places >= read // 2, f"only {places} places folded"
    assert more <= 1, (
        "second folds find more: only a layer between two mirrored paddings may stay out of the first one's reach"
    )
