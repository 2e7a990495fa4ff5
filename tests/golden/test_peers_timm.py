"""timm's networks, of whose blocks we have no code: folded as far as timm's own hand-written fusing, or further, and exactly."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support import fold_error, randomize_norms
from unbranch import reparameterize

EVERYDAY = ["repvgg_a0", "mobileone_s0", "tf_efficientnet_b0", "fastvit_t8"]
ZOO = [
    "repvgg_b1g4",
    "repvgg_d2se",
    "mobileone_s4",
    "repvit_m0_9",
    "repghostnet_050",
    "ghostnetv3_050",
    "starnet_s1",
    "resnet18",
    "resnet26d",
    "seresnext26d_32x4d",
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "convnext_atto",
    "levit_128s",
    "regnetx_002",
    "densenet121",
    "dla34",
    "hrnet_w18_small",
    "vovnet39a",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "nf_resnet50",
    "resnetv2_50",
    "inception_v3",
]
EPSILON = torch.finfo(torch.float64).eps
SUMS_AT_THE_ROOT = {"levit_128s"}
"""Their own forward averages two heads, which become one layer: the root is then another module."""

FIXED = {"levit_128s": 224, "inception_v3": 299}


@torch.no_grad()
def layers_that_run(model: nn.Module, x: Tensor) -> int:
    """Convolutions and norms that a run calls; stand-ins for folded norms are neither."""
    called: set[nn.Module] = set()
    kinds = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    handles = [
        module.register_forward_hook(lambda m, args, output: called.add(m))
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return len(called)


class Counting(TorchDispatchMode):
    """Counts the ops that a run computes or copies with; views are none."""

    ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops += not func.is_view
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def ops_that_run(model: nn.Module, x: Tensor) -> int:
    with Counting() as mode:
        model(x)
    return mode.ops


def check(name: str, generator: torch.Generator) -> None:
    timm: Any = pytest.importorskip("timm")
    side = FIXED.get(name, 96)
    other = (1, 3, side, side + 32) if name not in FIXED else (2, 3, side, side)
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    inputs = [torch.rand(size, generator=generator) for size in ((1, 3, side, side), other)]
    randomize_norms(model, generator, inputs[0])
    model = model.double()
    folded, report = reparameterize(model, inputs[0].double(), return_report=True)
    assert type(folded) is type(model) or name in SUMS_AT_THE_ROOT
    for x in inputs:
        with torch.no_grad():
            expected, error = model(x.double()), fold_error(folded(x.double()), model(x.double()))
            rounding = fold_error(model(x.double() * (1 + EPSILON)), expected)
        assert error <= max(1e-10, 100 * rounding), (
            f"{error}, and {rounding} by the input's last digit\n{report.verdict}"
        )
    theirs = timm.utils.model.reparameterize_model(model.float())
    assert layers_that_run(folded.float(), inputs[0]) <= layers_that_run(theirs, inputs[0])
    assert ops_that_run(folded, inputs[0]) <= ops_that_run(theirs, inputs[0])
    again = reparameterize(folded.double(), inputs[0].double(), return_report=True)[1]
    assert not again.changed, f"{again}"


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERYDAY)
def test_timm(name: str, generator: torch.Generator) -> None:
    check(name, generator)


@pytest.mark.zoo
@pytest.mark.parametrize("name", ZOO)
def test_timms_zoo(name: str, generator: torch.Generator) -> None:
    check(name, generator)
