"""The certificate: what passes, what fails, and where."""

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.frontends.modules.checks import conv_norm, drawn, x_of
from unbranch import reparameterize, verify
from unbranch.fold.certificate import fold_error, tensors_in


def net() -> Any:
    return drawn(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm(4, 6, 5), nn.ReLU()))


@torch.no_grad()
def spoiled(model: Any, name: str, by: float) -> Any:
    bad = copy.deepcopy(model)
    dict(bad.named_parameters())[name].view(-1)[0] += by
    return bad


def test_a_right_fold_passes_and_says_what_was_run() -> None:
    model, x = net(), x_of(1, 4, 9, 9)
    folded, report = reparameterize(model, x, return_report=True)
    certificate = verify(model, folded, x, report=report)
    assert certificate
    assert len({check.size for check in certificate.checks}) >= 2, "only one size was run"
    assert "equal" in str(certificate)
    assert certificate.error <= 1e-10


@pytest.mark.parametrize("by", [1e-3, 1e-8, float("nan"), float("inf")])
def test_a_wrong_fold_fails_and_its_place_is_named(by: float) -> None:
    model, x = net(), x_of(1, 4, 9, 9)
    folded, report = reparameterize(model, x, return_report=True)
    name = next(name for name, _ in folded.named_parameters() if name.startswith("2"))
    certificate = verify(model, spoiled(folded, name, by), x, report=report)
    assert not certificate
    assert "NOT EQUAL" in str(certificate)
    assert certificate.worst_place is not None
    assert certificate.worst_place.startswith("2")


def test_a_border_that_only_another_size_shows_fails() -> None:
    """Equal on the recorded size, different on others: the second size is there to see it."""

    class Sized(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.shape[-1] == 9 else x + 1e-3

    before = nn.Sequential(nn.ReLU()).eval()
    after = nn.Sequential(nn.ReLU(), Sized()).eval()
    assert not verify(before, after, x_of(1, 4, 9, 9))


def test_sizes_may_be_given_and_a_network_of_one_size_is_noted() -> None:
    model, x = net(), x_of(1, 4, 9, 9)
    shapes = {check.size for check in verify(model, model, x, sizes=[(12, 7), (8, 8)]).checks}
    assert {"1x4x9x9", "1x4x12x7", "1x4x8x8"} <= shapes
    fixed = drawn(nn.Sequential(conv_norm(), nn.Flatten(), nn.Linear(4 * 81, 3)))
    certificate = verify(fixed, fixed, x)
    assert certificate
    assert any("no second size" in note for note in certificate.notes)


def test_missing_and_extra_outputs_fail() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
            return {"a": [x, x * 2]}

    class Once(nn.Module):
        def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
            return {"a": [x]}

    assert not verify(Twice().eval(), Once().eval(), x_of(1, 4, 5, 5))
    assert not verify(Once().eval(), Twice().eval(), x_of(1, 4, 5, 5))
    paths = [path for path, _ in tensors_in({"a": [torch.zeros(1), (torch.zeros(1),)]})]
    assert paths == ["output['a'][0]", "output['a'][1][0]"]


def test_nothing_to_compare_is_no_pass() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> None:
            return None

    assert not verify(Silent().eval(), Silent().eval(), x_of(1, 4, 5, 5))


def test_training_mode_is_an_error() -> None:
    model = net()
    with pytest.raises(ValueError, match="training mode"):
        verify(model, copy.deepcopy(model).train(), x_of(1, 4, 9, 9))


def test_the_error_of_a_fold() -> None:
    nan, inf = float("nan"), float("inf")
    assert fold_error(torch.tensor([0.3]), torch.tensor([0.1])) == pytest.approx(0.2)
    assert fold_error(torch.tensor([30.0]), torch.tensor([10.0])) == pytest.approx(2.0)
    assert fold_error(torch.tensor([1.0, nan]), torch.tensor([1.0, nan])) == 0.0
    assert fold_error(torch.tensor([inf]), torch.tensor([inf])) == 0.0
    assert fold_error(torch.tensor([nan]), torch.tensor([1.0])) == inf
    assert fold_error(torch.tensor([inf]), torch.tensor([-inf])) == inf
    assert fold_error(torch.tensor([1.0]), torch.tensor([inf])) == inf
    assert fold_error(torch.zeros(2, 3), torch.zeros(3, 2)) == inf
    assert fold_error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0.0


def test_complex_outputs_differ_in_either_part() -> None:
    assert fold_error(torch.tensor(1 + 5j), torch.tensor(1 + 1j)) == 4.0
    assert fold_error(torch.tensor(1 + 1j).conj(), torch.tensor(1 - 1j)) == 0.0


@pytest.mark.parametrize("sizes", [[(96,)], [(9, 9, 9)], [(0, 3)]])
def test_sizes_that_no_input_could_have_are_one_clear_line(sizes: Any) -> None:
    model, x = net(), x_of(1, 4, 9, 9)
    with pytest.raises(ValueError, match=r"a list of sizes is wanted.*each with 2 numbers"):
        verify(model, model, x, sizes=sizes)


def test_inputs_in_named_tuples_are_run_at_another_size_too() -> None:
    class Pair(NamedTuple):
        image: Tensor
        factor: Tensor

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = conv_norm()

        def forward(self, pair: Pair) -> Tensor:
            return self.layers(pair.image) * pair.factor

    model, pair = drawn(Both()), Pair(x_of(1, 4, 9, 9), x_of(1, 1))
    certificate = verify(model, reparameterize(model, (pair,)), (pair,))
    assert certificate
    assert len({check.size for check in certificate.checks}) == 2
