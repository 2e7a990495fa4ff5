"""What the module front end must take in its stride: shared layers, ties, wrappers, copies, pickles, dtypes."""

import copy
import gc
import pickle
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.frontends.modules.checks import (
    ODD,
    SMALL,
    Branches,
    Sum,
    conv_norm,
    convolutions,
    drawn,
    errors,
    fold,
    norms_left,
    state,
    unchanged,
    x_of,
)
from unbranch import explain, reparameterize, reparameterize_


def test_a_layer_called_twice_folds_if_both_calls_fold_alike() -> None:
    class Twice(nn.Module):
        def __init__(self, alike: bool) -> None:
            super().__init__()
            self.layers, self.other, self.alike = conv_norm(), nn.BatchNorm2d(4), alike

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.layers(x))
            return F.relu(self.layers(y)) if self.alike else F.relu(self.other(self.layers[0](y)))

    folded, report = fold(Twice(alike=True))
    assert report.changed
    assert norms_left(folded) == 1
    fold(Twice(alike=False))


def test_one_module_under_two_names_is_replaced_under_both() -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = Sum()
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.b(F.relu(self.a(x))))

    folded, report = fold(Aliased())
    assert report.changed
    assert folded.a is folded.b
    assert convolutions(folded) == 1


def test_tied_weights_fold_each_for_itself() -> None:
    first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    second.weight = first.weight
    model = nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.BatchNorm2d(4), nn.ReLU())
    folded, report = fold(model)
    assert len(report.folded) == 2
    assert not torch.equal(folded[0].weight, folded[3].weight)
    assert report.notes == ("0.weight and 3.weight were tied: folding unties them",)
    assert first.weight is second.weight


def test_a_weight_that_a_functional_call_reads_too_stays() -> None:
    class Borrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.norm(self.conv(x)))
            return F.conv2d(y, self.conv.weight, padding=1)

    fold(nn.Sequential(Borrowing()))


@pytest.mark.parametrize("kind", ["weight", "spectral", "old weight", "old spectral", "orthogonal"])
def test_layers_with_computed_weights_fold(kind: str) -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    drawn(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if kind == "old weight":
            torch.nn.utils.weight_norm(layer)
        elif kind == "old spectral":
            torch.nn.utils.spectral_norm(layer)
        else:
            made = {
                "weight": parametrizations.weight_norm,
                "spectral": parametrizations.spectral_norm,
                "orthogonal": parametrizations.orthogonal,
            }
            made[kind](layer)
        model = nn.Sequential(layer, nn.BatchNorm2d(4), nn.ReLU()).double().eval()
        drawn(model[1])
        x = [x_of(*SMALL), x_of(*ODD)]
        folded, report = reparameterize(model, x[0], return_report=True)
    assert report.changed
    assert type(folded[0]) is nn.Conv2d  # pyright: ignore[reportIndexIssue]
    assert not dict(folded.named_parameters()).keys() & {"0.weight_g", "0.weight_orig"}
    assert max(errors(folded, model, *x)) <= 1e-10


class Standardised(nn.Conv2d):
    """Weight standardisation: zero mean and unit variance per output channel."""

    def forward(self, input: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(input, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


def test_weight_standardisation_folds_to_the_weight_used() -> None:
    folded, report = fold(nn.Sequential(Standardised(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU()))
    assert report.changed
    assert type(folded[0]) is nn.Conv2d


def test_the_given_class_attributes_and_containers_are_kept() -> None:
    class Stage(nn.Sequential):
        index = 3

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = Stage(Branches(), Branches())
            self.head = nn.ModuleDict({"a": conv_norm(), "b": nn.Sequential(nn.Identity(), conv_norm())})
            self.names = ["x", "y"]

        def forward(self, x: Tensor) -> Tensor:
            x = self.stage(x)
            return torch.cat([F.relu(self.head["a"](x)), F.relu(self.head["b"](x))], 1)

    folded, _ = fold(Net())
    assert type(folded) is Net
    assert type(folded.stage) is Stage
    assert len(folded.stage) == 2
    assert folded.names == ["x", "y"]
    assert folded.stage[0].tag == "kept"
    assert list(folded.head) == ["a", "b"]
    assert convolutions(folded) == 4
    assert norms_left(folded) == 0


def test_where_chooses_by_glob_or_by_function() -> None:
    def net() -> nn.Module:
        return nn.Sequential(Sum(), nn.ReLU(), Sum(), nn.ReLU(), nn.Sequential(Sum(), nn.ReLU()))

    for where, kept in (
        ("2", 2),
        ("4*", 2),
        (lambda path, module: path.startswith("0"), 2),
        (lambda path, module: isinstance(module, Sum), 0),
        ("nothing", 3),
    ):
        folded, report = fold(net(), where=where)
        assert sum(isinstance(m, Sum) for m in folded.modules()) == kept, where
        if kept:
            assert any("not selected by where" in refused.reason for refused in report.refused)


def test_a_second_call_finds_nothing_and_says_so() -> None:
    model = drawn(nn.Sequential(Branches(), conv_norm(), nn.ReLU()))
    x = x_of(*SMALL)
    assert reparameterize_(model, x).changed
    before = state(model)
    report = reparameterize_(model, x)
    assert not report.changed
    assert "nothing to gain" in str(report)
    unchanged(model, before)


def test_explain_changes_nothing_and_says_what_would_fold() -> None:
    model = drawn(nn.Sequential(Branches(), conv_norm(), nn.ReLU()))
    before, kinds = state(model), [type(m) for m in model.modules()]
    report = explain(model, x_of(*SMALL))
    unchanged(model, before)
    assert kinds == [type(m) for m in model.modules()]
    assert "would fold 2 places" in str(report)
    applied = reparameterize_(model, x_of(*SMALL))
    assert [f.place for f in applied.folded] == [f.place for f in report.folded]
    assert applied.after == report.after


def test_the_original_is_not_touched() -> None:
    model = drawn(nn.Sequential(Branches(), conv_norm(), nn.ReLU()))
    before = state(model)
    folded = reparameterize(model, x_of(*SMALL))
    unchanged(model, before)
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.zero_()
    unchanged(model, before)


def test_only_folded_parameters_stop_requiring_gradients() -> None:
    model = drawn(nn.Sequential(conv_norm(), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.GroupNorm(2, 4)))
    folded = reparameterize(model, x_of(*SMALL))
    requiring = {name for name, p in folded.named_parameters() if p.requires_grad}
    assert requiring == {"2.weight", "2.bias", "4.weight", "4.bias"}
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("form", ["copy", "pickle", "state", "export", "inference"])
def test_a_folded_model_copies_pickles_and_loads(form: str, tmp_path: Path) -> None:
    model = drawn(nn.Sequential(Sum(), nn.ReLU(), conv_norm(), nn.ReLU()))
    x = x_of(*SMALL)
    folded = reparameterize(model, x)
    if form == "copy":
        again = copy.deepcopy(folded)
    elif form == "pickle":
        again = pickle.loads(pickle.dumps(folded))
    elif form == "state":
        torch.save(folded.state_dict(), tmp_path / "folded.pt")
        again = reparameterize(drawn(nn.Sequential(Sum(), nn.ReLU(), conv_norm(), nn.ReLU()), 5), x)
        again.load_state_dict(torch.load(tmp_path / "folded.pt", weights_only=True))
    elif form == "export":
        again = torch.export.export(folded, (x,)).module()
    else:
        with torch.inference_mode():
            again = reparameterize(model, x)
    assert max(errors(again, model, x)) <= 1e-10


def test_a_rewritten_module_pickles_too() -> None:
    folded, _ = fold(nn.Sequential(Branches(), nn.ReLU()))
    again = pickle.loads(pickle.dumps(folded))
    assert max(errors(again, folded, x_of(*ODD))) <= 1e-10


def test_an_averaged_copy_folds() -> None:
    model = drawn(nn.Sequential(Branches(), conv_norm(), nn.ReLU()))
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True).eval()
    x = x_of(*SMALL)
    folded, report = reparameterize(average, x, return_report=True)
    assert report.changed
    assert max(errors(folded, average, x, x_of(*ODD))) <= 1e-10


def test_wrappers_are_taken_off() -> None:
    model = drawn(nn.Sequential(Branches(), conv_norm(), nn.ReLU()))
    x = x_of(*SMALL)
    folded, report = reparameterize(nn.DataParallel(model), x, return_report=True)
    assert type(folded) is nn.Sequential
    assert any("DataParallel" in note for note in report.notes)
    assert max(errors(folded, model, x, x_of(*ODD))) <= 1e-10


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_distributed_wrapper_is_taken_off() -> None:
    model = drawn(nn.Sequential(Branches(), conv_norm(), nn.ReLU()))
    wrapped = nn.parallel.DistributedDataParallel(model)
    folded, report = reparameterize(wrapped, x_of(*SMALL), return_report=True)
    assert any("DistributedDataParallel" in note for note in report.notes)
    assert max(errors(folded, model, x_of(*ODD))) <= 1e-10


def test_compiling_before_and_after() -> None:
    model = drawn(nn.Sequential(Branches(), conv_norm(), nn.ReLU()))
    x = x_of(*SMALL)
    compiled = torch.compile(model, backend="eager")
    folded, report = reparameterize(compiled, x, return_report=True)
    assert any("torch.compile" in note for note in report.notes)
    assert max(errors(folded, model, x)) <= 1e-10
    again: Any = torch.compile(folded, backend="eager")
    assert max(errors(again, model, x, x_of(*ODD))) <= 1e-10


def test_empty_batches() -> None:
    model = drawn(nn.Sequential(Branches(), conv_norm(), nn.ReLU()))
    folded = reparameterize(model, x_of(*SMALL))
    empty = x_of(0, 4, 9, 9)
    assert folded(empty).shape == model(empty).shape
    for example in (empty, (empty,), {"input": empty}):
        from_empty = reparameterize(model, example)
        assert convolutions(from_empty) == convolutions(folded) < convolutions(model)
        assert max(errors(from_empty, model, x_of(*SMALL))) <= 1e-10
    with pytest.raises(ValueError, match=r"example_inputs of shape \(0, 4, 9, 0\) hold nothing"):
        reparameterize(model, x_of(0, 4, 9, 0))


def test_an_empty_input_beside_a_full_one_is_kept() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = conv_norm()

        def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
            return self.layers(x) + boxes.sum()

    folded = reparameterize(drawn(Scaled()), (x_of(*SMALL), torch.zeros(0, 4, dtype=torch.float64)))
    assert norms_left(folded) == 0


def test_ops_that_make_nothing_stay_with_what_makes_them() -> None:
    class Emptied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv_norm(), conv_norm()

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.first(x)
            nothing, rest = torch.split(y, [0, 4], 1)
            return self.second(torch.cat([rest, nothing], 1)), -y[:, 4:], -y[:, :, 3:3]

    model = drawn(Emptied())
    folded = reparameterize(model, x_of(*SMALL))
    for made, expected in zip(folded(x_of(*ODD)), model(x_of(*ODD)), strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)


def test_memory_format_is_kept() -> None:
    model = drawn(nn.Sequential(Branches(), conv_norm(), nn.ReLU())).to(memory_format=torch.channels_last)
    x = x_of(*SMALL).to(memory_format=torch.channels_last)
    folded = reparameterize(model, x)
    weights = [m.weight for m in folded.modules() if isinstance(m, nn.Conv2d)]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert folded(x).is_contiguous(memory_format=torch.channels_last)
    assert max(errors(folded, model, x)) <= 1e-10


class Watching(nn.Module):
    """Says whether the cycle collector was on while it ran, and can fail."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.layers = conv_norm(3, 5, 3)
        self.fails = fails
        self.seen: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(gc.isenabled())
        if self.fails:
            raise RuntimeError("broken on purpose")
        return F.relu(self.layers(x))


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_collector_rests_while_folding_and_is_as_it_was_after(on: bool, fails: bool) -> None:
    model = Watching(fails).eval()
    (gc.enable if on else gc.disable)()
    try:
        with pytest.raises(RuntimeError, match="on purpose") if fails else nullcontext():
            reparameterize_(model, torch.randn(2, 3, 9, 7))
        assert gc.isenabled() == on
    finally:
        gc.enable()
    assert not any(model.seen)
