"""What the module front end must refuse or leave as it is, with the reason: modes, norms without statistics, cuts, hooks."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontends.modules.checks import (
    ODD,
    SMALL,
    Branches,
    Sum,
    conv_norm,
    convolutions,
    drawn,
    fold,
    state,
    unchanged,
    x_of,
)
from tests.support import fold_error
from unbranch import explain, reparameterize, reparameterize_


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


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        (lambda: (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), "the batch's own"),
        (lambda: (Padded(), nn.BatchNorm2d(4)), "computed from the input's size"),
    ],
)
def test_what_stands_alone_because_of_how_it_is_used_is_named(
    layers: Callable[[], tuple[nn.Module, ...]], why: str
) -> None:
    report = explain(drawn(nn.Sequential(*layers(), nn.ReLU())), x_of(*ODD))
    assert any(why in refused.reason for refused in report.refused), str(report)


class Padded(nn.Module):
    """Padding by the size, in front of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.pad(x, (0, x.shape[3] % 4, 0, 0)))


def test_what_cannot_be_copied_is_named() -> None:
    model = drawn(nn.Sequential(conv_norm(), nn.ReLU()))
    model[1].lock = threading.Lock()
    with pytest.raises(ValueError, match=r"1\.lock cannot be copied .*use reparameterize_"):
        reparameterize(model, x_of(*SMALL))
    assert reparameterize_(model, x_of(*SMALL)).changed
