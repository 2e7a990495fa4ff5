"""A fold of a program or a file keeps the cycle collector away, and leaves it as it was."""

import gc
from contextlib import nullcontext
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import unbranch
from tests.frontends.onnx.models import written


def a_program() -> torch.export.ExportedProgram:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    return torch.export.export(net, (torch.zeros(1, 4, 9, 8),))


def a_file() -> onnx.ModelProto:
    text = "g (float[1,4,9,8] x) => (float[1,4,7,6] y) { a = Conv (x, w) y = BatchNormalization (a, g, b, m, var) }"
    return written(text, {"w": (4, 4, 3, 3), **dict.fromkeys(("g", "b", "m", "var"), (4,))})


@pytest.mark.parametrize("make", [a_program, a_file])
@pytest.mark.parametrize("verb", [unbranch.reparameterize, unbranch.explain])
@pytest.mark.parametrize(("on", "fails"), [(True, False), (True, True), (False, False)])
def test_the_collector_rests_while_folding_and_is_as_it_was_after(
    make: Any, verb: Any, on: bool, fails: bool
) -> None:
    seen: list[bool] = []

    def where(name: str, node: Any) -> bool:
        seen.append(gc.isenabled())
        if fails:
            raise RuntimeError("broken on purpose")
        return True

    model = make()
    (gc.enable if on else gc.disable)()
    try:
        with pytest.raises(RuntimeError, match="on purpose") if fails else nullcontext():
            verb(model, where=where)
        assert gc.isenabled() == on
    finally:
        gc.enable()
    assert seen
    assert not any(seen)
