"""What the module front end must take in its stride: shared layers, ties, wrappers, hooks, dtypes, copies, pickles."""

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
    conv_norm,
    convolutions,
    drawn,
    errors,
    fold,
    norms_left,
    x_of,
)
from tests.support import fold_error
from unbranch import explain, reparameterize, reparameterize_


class Branches(nn.Module):
    """RepVGG's sum, written in its parent's forward."""

    def __init__(self, channels: int = 4, **options: Any) -> None:
        super().__init__()
        self.big = conv_norm(channels, channels, 3, **options)
        self.small = conv_norm(channels, channels, 1, **options)
        self.same = nn.BatchNorm2d(channels)
        self.tag = "kept"

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.big(x) + self.small(x) + self.same(x))


class Sum(Branches):
    """The sum alone: affine as a whole."""

    def forward(self, x: Tensor) -> Tensor:
        return self.big(x) + self.small(x) + self.same(x)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


# What is an error, with nothing changed


def test_training_mode_is_an_error_that_names_the_module() -> None:
    model = drawn(nn.Sequential(conv_norm(), nn.ReLU()))
    model[0][1].train()
    before = state(model)
    for verb in (reparameterize, reparameterize_, explain):
        with pytest.raises(ValueError, match=r"0\.1 \(BatchNorm2d\) is in training mode.*eval"):
            verb(model, x_of(*SMALL))
    unchanged(model, before)


def test_autocast_is_an_error() -> None:
    model = drawn(nn.Sequential(conv_norm(), nn.ReLU()))
    before = state(model)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match="autocast is on for cpu"),
    ):
        reparameterize_(model, x_of(*SMALL))
    unchanged(model, before)


@pytest.mark.parametrize("kind", [Branches, Sum])
def test_a_sum_at_the_root_is_an_error_in_place_and_a_new_module_otherwise(kind: type[Branches]) -> None:
    model = drawn(kind())
    before = state(model)
    with pytest.raises(ValueError, match=r"use model = reparameterize\(model\)"):
        reparameterize_(model, x_of(*SMALL))
    unchanged(model, before)
    folded, _ = fold(kind())
    assert convolutions(folded) == 1


def test_options_that_do_not_exist_are_named() -> None:
    model = drawn(nn.Sequential(conv_norm()))
    with pytest.raises(ValueError, match="'speed'"):
        reparameterize(model, x_of(*SMALL), cost="speed")
    with pytest.raises(ValueError, match="'blindly' is neither 'witnessed' nor 'observed'"):
        reparameterize(model, x_of(*SMALL), trust="blindly")


def test_an_example_that_cannot_be_guessed_is_asked_for() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = conv_norm()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.layers(a) + b

    with pytest.raises(ValueError, match="pass example_inputs"):
        reparameterize(Pair().eval())


def test_an_example_that_the_model_refuses_leaves_the_model_as_it_was() -> None:
    model = drawn(nn.Sequential(conv_norm(), nn.ReLU()))
    before = state(model)
    with pytest.raises(RuntimeError):
        reparameterize_(model, x_of(1, 5, 9, 9))
    unchanged(model, before)
    assert reparameterize_(model, x_of(*SMALL)).changed


# What is left alone, with its reason


def test_a_norm_without_statistics_is_left_alone() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    folded, report = fold(nn.Sequential(nn.Conv2d(4, 4, 3), norm, nn.ReLU()))
    assert not report.changed
    assert type(folded[1]) is nn.BatchNorm2d


@pytest.mark.parametrize(
    "layer",
    [nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.MaxPool2d(2), nn.AvgPool2d(2, ceil_mode=True), nn.PReLU(4)],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_not_linear_is_left_alone(layer: nn.Module) -> None:
    folded, _ = fold(nn.Sequential(nn.Conv2d(4, 4, 3), layer, nn.BatchNorm2d(4)))
    assert type(folded[1]) is type(layer)


def test_a_narrow_bottleneck_is_exact_and_a_loss() -> None:
    model = nn.Sequential(nn.Conv2d(64, 4, 1), nn.Conv2d(4, 64, 1), nn.ReLU())
    _, report = fold(model, (1, 64, 9, 9))
    assert not report.changed
    assert any("more work" in refused.reason for refused in report.refused)


def test_depthwise_and_pointwise_stay_two() -> None:
    model = nn.Sequential(
        nn.Conv2d(32, 32, 3, padding=0, groups=32, bias=False), nn.Conv2d(32, 32, 1), nn.ReLU()
    )
    folded, report = fold(model, (1, 32, 9, 9))
    assert not report.changed
    assert convolutions(folded) == 2


def test_a_value_that_is_read_elsewhere_is_a_cut() -> None:
    class Tapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.cat([F.relu(self.norm(y)), y.sigmoid()], 1)

    _, report = fold(nn.Sequential(Tapped()))
    assert not report.changed


def test_a_value_that_a_forward_stores_is_a_cut() -> None:
    class Storing(nn.Module):
        seen: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return x

    model = drawn(nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), Storing(), nn.BatchNorm2d(4), nn.ReLU()))
    x = x_of(*SMALL)
    folded = reparameterize(model, x)
    assert not [name for name in vars(model[1]) if name == "seen"], "the recording's value stayed behind"
    with torch.no_grad():
        folded(x), model(x)
    assert isinstance(folded, nn.Sequential)
    assert fold_error(folded[1].seen, model[1].seen) <= 1e-10


@pytest.mark.parametrize("at", ["conv", "between", "norm"])
@pytest.mark.parametrize("pre", [False, True])
def test_a_hook_sees_what_it_saw(at: str, pre: bool) -> None:
    layers = {"conv": nn.Conv2d(4, 4, 3, bias=False), "between": nn.Identity(), "norm": nn.BatchNorm2d(4)}
    model = nn.Sequential(*layers.values(), nn.ReLU())
    drawn(model)
    seen: list[Tensor] = []
    if pre:
        layers[at].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    else:
        layers[at].register_forward_hook(lambda _, args, output: seen.append(output))
    x = x_of(*SMALL)
    with torch.no_grad():
        model(x)
        expected = seen[-1]
        folded = reparameterize(model, x)
        seen.clear()
        folded(x)
    assert len(seen) == 1, "the hook is gone"
    assert fold_error(seen[0], expected) <= 1e-10


def test_hooks_elsewhere_survive() -> None:
    model = drawn(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm()))
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    folded, report = reparameterize(model, x_of(*SMALL), return_report=True)
    calls.clear()
    folded(x_of(*SMALL))
    assert calls == [1]
    assert len(report.folded) == 2


# What is handled


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
    from_empty = reparameterize(model, empty)
    assert max(errors(from_empty, model, x_of(*SMALL))) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_no_further_off_than_a_cast_of_the_exact_fold(dtype: torch.dtype) -> None:
    for seed in range(5):
        stored = drawn(nn.Sequential(Branches(8), Branches(8), conv_norm(8, 8), nn.ReLU()), seed).to(dtype)
        x = x_of(1, 8, 16, 16, seed=seed).to(dtype)
        folded = reparameterize(stored, x)
        assert {p.dtype for p in folded.parameters()} == {dtype}
        exact = copy.deepcopy(stored).double()
        cast = reparameterize(exact, x.double()).to(dtype)
        with torch.no_grad():
            expected = exact(x.double())
            ours, theirs = fold_error(folded(x), expected), fold_error(cast(x), expected)
        assert ours <= theirs * 1.001, f"{ours} and {theirs}"
        for mine, best in zip(folded.parameters(), cast.parameters(), strict=True):
            assert torch.equal(mine, best)


def test_memory_format_is_kept() -> None:
    model = drawn(nn.Sequential(Branches(), conv_norm(), nn.ReLU())).to(memory_format=torch.channels_last)
    x = x_of(*SMALL).to(memory_format=torch.channels_last)
    folded = reparameterize(model, x)
    weights = [m.weight for m in folded.modules() if isinstance(m, nn.Conv2d)]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert folded(x).is_contiguous(memory_format=torch.channels_last)
    assert max(errors(folded, model, x)) <= 1e-10


def test_sums_in_place() -> None:
    class InPlace(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.conv, self.side, self.kind = conv_norm(), conv_norm(4, 4, 1), kind

        def forward(self, x: Tensor) -> Tensor:
            if self.kind == "into the source":
                x = x.clone()
                x += self.conv(x)
                return F.relu(x)
            if self.kind == "into a branch":
                y = self.conv(x)
                y += self.side(x)
                y += x
                return F.relu(y)
            if self.kind == "read later":
                y = self.conv(x)
                z = y
                y += self.side(x)
                return F.relu(z) + z.mean()
            y = self.conv(x)
            view = y[:, :2]
            y += self.side(x)
            return F.relu(y) + view.mean()

    for kind, left in (
        ("into the source", 2),
        ("into a branch", 1),
        ("read later", 1),
        ("through a view", 2),
    ):
        folded, report = fold(nn.Sequential(InPlace(kind)))
        assert report.changed
        assert convolutions(folded) == left, f"{kind}: {report}"


def test_functional_ops_of_a_users_module_fold() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))
            self.scale = nn.Parameter(torch.randn(6, 1, 1))
            self.register_buffer("mean", torch.randn(6))
            self.register_buffer("var", torch.rand(6) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(x, self.weight, padding=1) * self.scale
            y = F.batch_norm(y, self.get_buffer("mean"), self.get_buffer("var"), eps=1e-3)
            return F.leaky_relu(y - 0.5)

    folded, report = fold(nn.Sequential(Functional()))
    assert report.changed
    assert convolutions(folded) == 1


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_rank_and_transposed_layers(rank: int, transposed: bool) -> None:
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    turned = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    layer: nn.Module = (
        turned(4, 6, 3, 2, 1, output_padding=1, groups=2) if transposed else plain(4, 6, 3, 2, 1, groups=2)
    )
    model = nn.Sequential(layer, norm(6), nn.ReLU())
    folded, report = fold(model, (1, 4, *[7, 8, 5][:rank]), (2, 4, *[9, 5, 6][:rank]))
    assert report.changed
    assert norms_left(folded) == 0


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_padding_modes(mode: str, kernel: int) -> None:
    layer = nn.Conv2d(4, 4, kernel, padding=1, padding_mode=mode)
    folded, report = fold(nn.Sequential(layer, nn.BatchNorm2d(4), nn.ReLU()))
    assert report.changed
    assert norms_left(folded) == 0


def test_linear_and_norm_over_tokens() -> None:
    class Tokens(nn.Module):
        """LeViT's way: a linear layer and a norm over the last axis of (batch, tokens, channels)."""

        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            return self.norm(x.flatten(0, 1)).reshape_as(x)

    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = Tokens(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.gelu(self.tokens(x.flatten(2).transpose(1, 2))))

    folded, report = fold(Flattened())
    assert report.changed
    assert norms_left(folded) == 0


def test_a_channel_shuffle_between_layers() -> None:
    class Shuffled(nn.Module):
        def __init__(self, own: bool) -> None:
            super().__init__()
            self.a, self.b, self.own = nn.Conv2d(6, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6), own

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if self.own:
                n, c, h, w = y.shape
                y = y.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
            else:
                y = F.channel_shuffle(y, 3)
            return F.relu(self.b(y))

    for own in (True, False):
        fold(nn.Sequential(Shuffled(own)), (1, 6, 9, 9), (3, 6, 7, 8))


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
