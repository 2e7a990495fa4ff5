"""Other people's networks: their collapsed weights, their own ONNX, and timm's multi-branch models."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn

from tests.frontends.onnx.models import exported, exported_by_dynamo, folded, ops
from tests.rvsr import load_mixers
from tests.support import randomize_norms
from unbranch.frontends.onnx import OnnxError, reparameterize_onnx, verify_onnx


def convolutions(model: onnx.ModelProto) -> list[tuple[torch.Tensor, torch.Tensor]]:
    constants = {
        i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in model.graph.initializer
    }
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    return [(constants[n.input[1]], constants[n.input[2]]) for n in nodes if n.input[1] in constants]


@pytest.mark.parametrize(
    ("way", "first"),
    [
        ("older", 7),
        pytest.param("older", 0, marks=pytest.mark.slow),
        pytest.param("newer", 0, marks=pytest.mark.slow),
        pytest.param("newer, any size", 0, marks=pytest.mark.slow),
    ],
)
def test_the_super_resolution_blocks_fold_to_their_authors_weights(
    shared_data: Path, way: str, first: int
) -> None:
    network, pairs = load_mixers(shared_data)
    network.mixers, pairs = network.mixers[first:], pairs[first:]
    example = torch.randn(2, 16, 12, 15)
    older = exported(network, example) if way == "older" else None
    model = older or exported_by_dynamo(network, example, dynamic=way.endswith("size"))
    after, report = reparameterize_onnx(model)
    found = convolutions(after)
    assert ops(after)["Conv"] == len(pairs) == 9 - first, str(report)
    for (weight, bias), (their_weight, their_bias) in zip(found, pairs, strict=True):
        assert float((weight - their_weight).abs().max()) <= 1e-5
        assert float((bias - their_bias).abs().max()) <= 1e-5
    assert verify_onnx(model, after, report=report)


def test_the_detectors_norms_fold_to_its_authors_onnx(shared_data: Path) -> None:
    folder = shared_data / "fastestdet"
    state = torch.load(folder / "fastestdet_coco.pth", weights_only=True, map_location="cpu")
    theirs = onnx.load(folder / "FastestDet.onnx")
    with pytest.raises(OnnxError, match="opset 11 is too old"):
        reparameterize_onnx(theirs)
    names = [key.removesuffix(".running_mean") for key in state if key.endswith("running_mean")]
    pairs = nn.ModuleList()
    for norm in names:
        stem, _, number = norm.rpartition(".")
        weight = state[f"{stem}.{int(number) - 1}.weight"]
        groups = weight.shape[0] if weight.shape[1] == 1 else 1
        conv = nn.Conv2d(
            weight.shape[1] * groups, weight.shape[0], weight.shape[2:], groups=groups, bias=False
        )
        bn = nn.BatchNorm2d(weight.shape[0])
        conv.weight.data = weight
        bn.load_state_dict({k: state[f"{norm}.{k}"] for k in bn.state_dict()})
        pairs.append(nn.Sequential(conv, bn))

    widths = [conv.in_channels for conv in pairs.modules() if isinstance(conv, nn.Conv2d)]

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pairs = pairs

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(pair(x[:, :width]) for pair, width in zip(self.pairs, widths, strict=True))

    after, _ = folded(exported(Pairs(), torch.randn(1, 512, 6, 6)))
    ours = convolutions(after)
    assert len(ours) == len(names) == 70
    candidates = convolutions(theirs)
    for weight, bias in ours:
        alike = [(w, b) for w, b in candidates if w.shape == weight.shape]
        assert min(float(max((weight - w).abs().max(), (bias - b).abs().max())) for w, b in alike) <= 1e-5


NETWORKS = {
    "mobileone_s0": 43,
    "repvgg_a0": 22,
    "repghostnet_050": None,
    "ghostnetv3_100": None,
    "fastvit_t8": None,
    "repvit_m0_9": None,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_timms_networks_fold_as_files(name: str, generator: torch.Generator) -> None:
    example = torch.randn(1, 3, 64, 64, generator=generator)
    network = timm.create_model(name).eval()
    randomize_norms(network, generator, example)
    model = exported(network, example)
    after, report = reparameterize_onnx(model)
    assert verify_onnx(model, after, example, report=report), name
    left = len([node for node in after.graph.node if node.op_type == "Conv"])
    assert NETWORKS[name] in (None, left), str(report)
    assert report.after.multiply_adds < report.before.multiply_adds
    assert np.isfinite(report.after.parameters)
