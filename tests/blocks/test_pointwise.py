"""1x1 convolutions with a stride: torch's numbers and gradients, and no memory overwritten in channels-last."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from unbranch.blocks.pointwise import STRIDED_POINTWISE

PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("size", "stride", "groups", "bias"),
    [
        ((11,), (3,), 1, True),
        ((9, 7), (2, 2), 1, False),
        ((7, 10), (1, 3), 3, True),
        ((8, 5), (2, 1), 2, True),
        ((5, 6, 7), (2, 1, 3), 2, False),
    ],
)
def test_numbers_and_gradients_are_torchs(
    size: tuple[int, ...], stride: tuple[int, ...], groups: int, bias: bool, training: bool
) -> None:
    ours = STRIDED_POINTWISE[len(size)](6, 12, 1, stride, groups=groups, bias=bias).double().train(training)
    theirs = PLAIN[len(size)](6, 12, 1, stride, groups=groups, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    again = x.detach().clone().requires_grad_()
    mine, reference = ours(x), theirs(again)
    given = torch.randn_like(reference)
    mine.backward(given)
    reference.backward(given)
    assert mine.shape == reference.shape
    pairs = [(mine, reference), (x.grad, again.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in pairs)


def test_inference_and_export_see_one_convolution() -> None:
    layer = STRIDED_POINTWISE[2](3, 4, 1, 2).eval()
    program = torch.export.export(layer, (torch.ones(1, 3, 5, 7),))
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls == [torch.ops.aten.conv2d.default]


CHANNELS_LAST = """
import torch, unbranch
for name in ("repvgg_a0", "mobileone_s0"):
    model = unbranch.models.create(name, num_classes=3).to(memory_format=torch.channels_last)
    model(torch.randn(4, 3, 128, 128).contiguous(memory_format=torch.channels_last)).sum().backward()
print("whole")
"""


def test_networks_train_in_channels_last() -> None:
    """In a process of its own: what it holds off kills the process."""
    ran = subprocess.run([sys.executable, "-c", CHANNELS_LAST], capture_output=True, text=True, check=False)
    assert ran.stdout == "whole\n", f"ended with {ran.returncode}: {ran.stderr}"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_is_the_inputs(layout: torch.memory_format) -> None:
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64).contiguous(memory_format=layout)
    ours = STRIDED_POINTWISE[2](6, 12, 1, 2).double()
    assert ours(x).is_contiguous(memory_format=layout)
