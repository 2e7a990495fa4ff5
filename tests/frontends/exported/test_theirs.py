"""Other people's networks: timm's multi-branch ones, and a super-resolution network whose authors published its collapsed form."""

from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tests.rvsr import load_mixers
from tests.support import fold_error, randomize_norms
from unbranch import reparameterize
from unbranch.frontends.exported import reparameterize_exported, verify_exported

SIZES = dict.fromkeys((0, 2, 3), Dim.AUTO)
FREE = ("aten.sym_", "aten._assert", "aten.dropout", "<built-in function")
CONVOLUTIONS = {"repvgg_a0": 22, "mobileone_s0": 43, "fastvit_t8": 52, "repvit_m0_9": 103}


def ops(program: ExportedProgram) -> Counter[str]:
    """What runs, by spelling; sizes, assertions and dropout in evaluation are nothing."""
    calls = (str(node.target) for node in program.graph.nodes if node.op == "call_function")
    return Counter(call for call in calls if not call.startswith(FREE))


def network(name: str) -> tuple[nn.Module, Tensor]:
    model, x = timm.create_model(name).eval().double(), torch.randn(2, 3, 96, 128, dtype=torch.float64)
    randomize_norms(model, torch.Generator().manual_seed(0), x)
    return model, x


@pytest.mark.parametrize(
    "name",
    [
        "fastvit_t8",
        *(
            pytest.param(name, marks=pytest.mark.zoo)
            for name in ("repvgg_a0", "mobileone_s0", "repvit_m0_9", "ghostnetv3_100")
        ),
    ],
)
def test_as_few_ops_as_the_folded_modules(name: str) -> None:
    model, x = network(name)
    program = torch.export.export(model, (x,), dynamic_shapes=(SIZES,))
    folded, report = reparameterize_exported(program)
    certificate = verify_exported(program, folded, report=report)
    assert certificate, str(certificate)
    assert len({check.size for check in certificate.checks}) == 2
    inplace = ops(torch.export.export(reparameterize(model, x), (x,), dynamic_shapes=(SIZES,)))
    found = ops(folded)
    assert found.total() <= inplace.total()
    if name in CONVOLUTIONS:
        assert found["aten.conv2d.default"] == CONVOLUTIONS[name]


@pytest.mark.zoo
def test_decomposed_network() -> None:
    model, x = network("fastvit_t8")
    program = torch.export.export(model, (x,), dynamic_shapes=(SIZES,)).run_decompositions()
    folded, _ = reparameterize_exported(program)
    assert verify_exported(program, folded)
    assert ops(folded)["aten.convolution.default"] == CONVOLUTIONS["fastvit_t8"]


@pytest.mark.parametrize(("form", "count"), [("layers", 9), ("core", 2)])
def test_folds_to_what_the_authors_collapsed_to(shared_data: Path, form: str, count: int) -> None:
    mixers, pairs = load_mixers(shared_data)
    x, stages = torch.randn(1, 16, 17, 22), mixers.mixers[:count]
    program = torch.export.export(stages, (x,), dynamic_shapes=({2: Dim.AUTO, 3: Dim.AUTO},))
    if form == "core":
        program = program.run_decompositions()
    folded, _ = reparameterize_exported(program)
    assert verify_exported(program, folded)
    for i, (weight, bias) in enumerate(pairs[:count]):
        stem = f"{i}.0.reparameterized"
        assert fold_error(folded.state_dict[f"{stem}.weight"], weight) <= 1e-5
        assert fold_error(folded.state_dict[f"{stem}.bias"], bias) <= 1e-5
    assert sum(n for call, n in ops(folded).items() if "conv" in call) == count
