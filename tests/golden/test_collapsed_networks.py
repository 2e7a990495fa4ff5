"""Networks that other people trained with branches or norms and folded themselves: our fold of theirs is their fold."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.rvsr import BLOCKS, load_mixers
from tests.support import fold_error
from unbranch import reparameterize


def test_blocks_with_filled_borders_fold_to_their_authors_kernels(shared_data: Path) -> None:
    network, collapsed = load_mixers(shared_data)
    x = torch.rand(1, 16, 24, 32)
    folded, report = reparameterize(network, x, return_report=True)
    layers = [layer for layer in folded.modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) == len(report.folded) == len(BLOCKS)
    for layer, (weight, bias) in zip(layers, collapsed, strict=True):
        assert layer.bias is not None
        assert fold_error(layer.weight, weight) <= 1e-5
        assert fold_error(layer.bias, bias) <= 1e-5
    wide = reparameterize(network.double(), x.double())
    with torch.no_grad():
        for y in (x.double(), torch.rand(2, 16, 13, 7, dtype=torch.float64)):
            assert fold_error(wide(y), network(y)) <= 1e-7, "the filled border is float32's bias"


def _pair(state: dict[str, Tensor], conv: str, norm: str) -> nn.Sequential:
    """One convolution and its norm with the stored numbers; depthwise where the weight says so."""
    weight = state[f"{conv}.weight"]
    out, into, kernel = weight.shape[0], weight.shape[1], weight.shape[2]
    groups = out if into == 1 and out > 1 else 1
    layer = nn.Conv2d(into * groups, out, kernel, padding=kernel // 2, groups=groups, bias=False)
    pair = nn.Sequential(layer, nn.BatchNorm2d(out)).eval()
    with torch.no_grad():
        layer.weight.copy_(weight)
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    pair[1].load_state_dict({name: state[f"{norm}.{name}"] for name in names})
    return pair


def test_every_trained_pair_of_layers_folds(shared_data: Path) -> None:
    path = shared_data / "fastestdet" / "fastestdet_coco.pth"
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    assert isinstance(state, dict | OrderedDict)
    norms = [key.removesuffix(".running_mean") for key in state if key.endswith(".running_mean")]
    weights = [
        key.removesuffix(".weight")
        for key, value in state.items()
        if key.endswith(".weight") and value.ndim == 4
    ]
    pairs = {norm: weights[_before(state, weights, norm)] for norm in norms}
    assert len(pairs) == 70
    for norm, conv in pairs.items():
        pair = _pair(state, conv, norm).double()
        weight = state[f"{conv}.weight"]
        into = weight.shape[0] if weight.shape[1] == 1 else weight.shape[1]
        x = torch.rand(1, into, 9, 7, dtype=torch.float64)
        folded, report = reparameterize(nn.Sequential(pair, nn.ReLU()).eval(), x, return_report=True)
        assert len(report.folded) == 1, f"{conv}: {report}"
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        with torch.no_grad():
            assert fold_error(folded(x), pair(x).relu()) <= 1e-10, conv


def _before(state: dict[str, Tensor], convolutions: list[str], norm: str) -> int:
    """The last convolution stored before a norm is the one that feeds it."""
    keys = [*state]
    at = keys.index(f"{norm}.weight")
    return max(i for i, conv in enumerate(convolutions) if keys.index(f"{conv}.weight") < at)
