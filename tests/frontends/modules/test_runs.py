"""What a run may do beside computing: hooks that change values, slices that take everything, writes, transforms, scripts."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.frontends.modules.checks import (
    ODD,
    SMALL,
    Branches,
    conv_norm,
    drawn,
    errors,
    fold,
    norms_left,
    state,
    unchanged,
    x_of,
)
from unbranch import explain, reparameterize, reparameterize_, verify


@pytest.mark.parametrize("where", [0, 1, 2])
def test_what_a_hook_makes_of_an_output_is_its_own(where: int) -> None:
    model = drawn(nn.Sequential(conv_norm(), nn.BatchNorm2d(4), conv_norm(4, 4, 1), nn.ReLU()))
    model[where].register_forward_hook(lambda module, args, output: output + 1)
    folded, report = reparameterize(model, x_of(*SMALL), return_report=True)
    assert report.changed
    assert max(errors(folded, model, x_of(*SMALL), x_of(*ODD))) <= 1e-10


@pytest.mark.parametrize(
    "at", [(..., slice(9), slice(None)), (slice(2),), (..., slice(-9, None)), (..., slice(0, 9))]
)
def test_a_slice_that_happens_to_take_everything_stays(at: Any) -> None:
    class Cropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv_norm(), conv_norm(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)[at])

    _, report = fold(Cropped(), (2, 4, 9, 9), (5, 4, 13, 11))
    assert report.changed


def test_what_a_batch_of_one_would_grow_by_stays() -> None:
    class Grown(nn.Module):
        def __init__(self, expanded: bool) -> None:
            super().__init__()
            self.layers, self.expanded = conv_norm(), expanded
            self.register_buffer("offset", torch.full((3, 4, 1, 1), 0.5))

        def forward(self, x: Tensor) -> Tensor:
            y = self.layers(x)
            return 2 * (y.expand(3, -1, -1, -1) if self.expanded else y + self.offset)

    for expanded in (True, False):
        fold(Grown(expanded), (3, 4, 9, 9), (1, 4, 9, 9))


def test_a_run_leaves_buffers_and_inputs_as_they_were() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = Branches()
            self.register_buffer("steps", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            self.steps[0] += 1
            x.add_(1)
            return self.branches(x) * self.steps[0]

    model, x = drawn(Counting()), x_of(*SMALL)
    kept, given = state(model), x.clone()
    folded = reparameterize(model, x)
    explain(model, x)
    assert verify(model, folded, x)
    unchanged(model, kept)
    assert torch.equal(folded.steps, kept["steps"])
    assert torch.equal(x, given)
    reparameterize_(model, x)
    assert torch.equal(model.steps, kept["steps"])
    assert norms_left(model) == 0


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_scripted_child_is_left_alone_and_the_rest_folds() -> None:
    child: Any = torch.jit.script(conv_norm().double().eval())
    model = nn.Sequential(drawn(conv_norm()), child).eval()
    folded, report = reparameterize(model, x_of(*SMALL), return_report=True)
    assert len(report.folded) == 1
    assert max(errors(folded, model, x_of(*SMALL), x_of(*ODD))) <= 1e-10


def test_a_transform_within_a_forward_is_left_alone() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.layers = conv_norm(), conv_norm()

        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(lambda one: self.layers(one[None])[0])(self.head(x))

    folded, _ = fold(Mapped())
    assert norms_left(folded) == 1


def test_outputs_in_a_dataclass_are_compared() -> None:
    @dataclass
    class Outputs:
        logits: Tensor

    class Structured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = conv_norm()

        def forward(self, x: Tensor) -> Outputs:
            return Outputs(self.layers(x))

    model = drawn(Structured())
    certificate = verify(model, reparameterize(model, x_of(*SMALL)), x_of(*SMALL))
    assert certificate
    assert {check.output for check in certificate.checks} == {"output.logits"}


def test_a_scale_and_a_shift_become_no_matrix() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.rand(64)), nn.Parameter(torch.rand(64))

        def forward(self, x: Tensor) -> Tensor:
            return (x.relu() * self.scale + self.shift).relu()

    report = explain(drawn(Scaled()), x_of(2, 50, 64))
    assert not report.changed
    assert "more work" in str(report)
