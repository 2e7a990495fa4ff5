"""Random networks: folded and original agree, and the folded one never does more work."""

import os

import pytest
import torch
from torch import nn

from tests.frontends.onnx.models import drawn, exported, folded, run
from tests.graphs import Border, random_network
from unbranch.frontends.onnx import explain_onnx
from unbranch.frontends.onnx.running import RUN_ERRORS

SEEDS = int(os.environ.get("UNBRANCH_RANDOM_GRAPHS", "60"))
PARTS = max(6, SEEDS // 20)


def runs_in_the_reference(network: nn.Module) -> bool:
    """ONNX's reference implementation knows no negative padding, and transposed convolutions of images only."""
    return not any(
        isinstance(layer, nn.modules.conv._ConvTransposeNd)
        or (isinstance(layer, Border) and min(layer.sides) < 0)
        for layer in network.modules()
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(PARTS))
def test_random_networks_keep_their_function(part: int) -> None:
    """In float64 where there are kernels for it, else in float32."""
    changed = read = more = 0
    for seed in range(part, SEEDS, PARTS):
        network, example = random_network(seed, rank=2 if seed % 3 else 1, depth=10)
        if not runs_in_the_reference(network):
            network, example = network.float(), example.float()
        try:
            model = exported(network, example)
            run(model, drawn(model))
        except (
            torch.onnx.errors.OnnxExporterError,
            *RUN_ERRORS,
        ):  # the older exporter has not all ops, and some wrongly
            continue
        after, report = folded(model)
        more += explain_onnx(after).changed
        read += 1
        changed += report.changed
        # A concatenation that a padding copies once more may be dearer than a few products.
        most = report.before.multiply_adds * (1.1 if report.after.ops == report.before.ops else 1)
        assert report.after.multiply_adds <= most or report.after.ops < report.before.ops
    assert read >= SEEDS // PARTS // 2
    assert changed >= read // 4
    assert more <= 1 + SEEDS // PARTS // 20, (
        "second folds find more: only a layer between two mirrored paddings, or behind rearrangements that the first one took "
        "away, may stay out of its reach"
    )
