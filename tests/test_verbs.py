"""The face's verbs say what they take, whatever they are given."""

import inspect
from typing import Any

import pytest
import torch
from torch import nn

import unbranch

IN_PLACE = inspect.unwrap(unbranch.reparameterize_)
"""Without the tests' own check of types."""


@pytest.mark.parametrize("given", [None, 3, "net.onnx", [nn.Conv2d(3, 4, 1)], torch.zeros(2)])
def test_what_is_no_network_is_said(given: Any) -> None:
    kind = type(given).__name__
    for verb in (unbranch.reparameterize, unbranch.explain):
        with pytest.raises(TypeError, match=f"a {kind} is no module, exported program or ONNX model"):
            verb(given)
    with pytest.raises(TypeError, match=f"a {kind} is not folded in place: use reparameterize"):
        IN_PLACE(given)
    with pytest.raises(TypeError, match=r"cannot be compared|no module, exported program"):
        unbranch.verify(given, nn.Conv2d(3, 4, 1))


def test_a_program_is_not_folded_in_place() -> None:
    program: Any = torch.export.export(nn.ReLU(), (torch.zeros(2),))
    with pytest.raises(TypeError, match="a ExportedProgram is not folded in place: use reparameterize"):
        IN_PLACE(program)
