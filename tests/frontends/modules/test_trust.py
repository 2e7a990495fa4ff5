"""A recording sees one input of one size. Whatever a forward makes depend on more is left alone, wherever the number travels."""

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontends.modules.checks import ODD, SMALL, conv_norm, convolutions, drawn, errors, fold, x_of
from unbranch import reparameterize

Step = Callable[[Any, Tensor], Tensor]


class Host(nn.Module):
    """A conv + norm of its own, a helper, and a forward that a test supplies: ``relu(step(self, x))``, or the step alone."""

    def __init__(self, step: Step, helper: nn.Module | None = None, activated: bool = True) -> None:
        super().__init__()
        self.layers = conv_norm()
        self.activated = activated
        self.helper = helper
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        y = self.step(self, x)
        return F.relu(y) if self.activated else y


class Helper(nn.Module):
    def __init__(self, step: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> object:
        return self.step(x)


class Scaled(nn.Module):
    """``relu(conv(x) * factor)``: a block that is given a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = conv_norm()
        self.factor = 1.0

    def forward(self, x: Tensor, factor: float | Tensor | None = None) -> Tensor:
        return F.relu(self.layers(x) * (self.factor if factor is None else factor))


def branches_on_size(m: Any, x: Tensor) -> Tensor:
    y = m.layers(x)
    return y * 2 if x.shape[2] > 10 else y


def loops_over_size(m: Any, x: Tensor) -> Tensor:
    y = m.layers(x)
    for _ in range(x.shape[2] - 8):
        y = y * 1.5
    return y


def branches_on_data(m: Any, x: Tensor) -> Tensor:
    y = m.layers(x)
    return y * 2 if x.mean() > 0 else y


def scales_by_size(m: Any, x: Tensor) -> Tensor:
    return m.layers(x) * (x.shape[2] / 7)


def scales_by_sqrt(m: Any, x: Tensor) -> Tensor:
    return m.layers(x) * math.sqrt(x.shape[-1])


def scales_by_numpy(m: Any, x: Tensor) -> Tensor:
    return m.layers(x) * float(numpy.sqrt(x.size(2)))


def scales_by_bits(m: Any, x: Tensor) -> Tensor:
    return m.layers(x) * ((x.shape[2] >> 2) + divmod(x.shape[3], 4)[0])


def scales_by_bit_length(m: Any, x: Tensor) -> Tensor:
    return m.layers(x) * x.shape[2].bit_length()


def scales_by_item(m: Any, x: Tensor) -> Tensor:
    return m.layers(x) * x.amax().item()


def looks_up_by_size(m: Any, x: Tensor) -> Tensor:
    return m.layers(x) * {9: 1.0}.get(x.shape[2], 2.0)


def misses_a_look_up(m: Any, x: Tensor) -> Tensor:
    return m.layers(x) * {13: 2.0}.get(x.shape[2], 1.0)


def indexes_by_size(m: Any, x: Tensor) -> Tensor:
    return m.layers(x) * [3.0, 5.0, 7.0][x.shape[2] % 3]


def compares_shapes(m: Any, x: Tensor) -> Tensor:
    y = m.layers(x)
    return y if x.shape[2:] == (9, 9) else y * 2


def fills_a_constant(m: Any, x: Tensor) -> Tensor:
    return m.layers(x) * torch.full((1,), float(x.shape[2]), dtype=x.dtype)


def crops_at_a_position(m: Any, x: Tensor) -> Tensor:
    return m.layers(x)[:, :, 1:5, -4:]


def crops_the_border(m: Any, x: Tensor) -> Tensor:
    return m.layers(x)[:, :, 1:-1, 2:]


def pads_by_size(m: Any, x: Tensor) -> Tensor:
    pad = max(12 - x.shape[2], 0)
    return m.layers[1](m.layers[0](F.pad(x, (0, pad, 0, pad))))


IN_ONE_FORWARD: list[Step] = [
    branches_on_size,
    loops_over_size,
    branches_on_data,
    scales_by_size,
    scales_by_sqrt,
    scales_by_numpy,
    scales_by_bits,
    scales_by_bit_length,
    scales_by_item,
    looks_up_by_size,
    misses_a_look_up,
    indexes_by_size,
    compares_shapes,
    fills_a_constant,
    pads_by_size,
    crops_at_a_position,
    crops_the_border,
]


@pytest.mark.parametrize("step", IN_ONE_FORWARD, ids=lambda step: step.__name__)
@pytest.mark.parametrize("activated", [True, False])
def test_what_depends_on_the_input_is_no_constant(step: Step, activated: bool) -> None:
    """With an activation the forward would have to be rewritten; without, the module would be replaced as a whole."""
    fold(nn.Sequential(Host(step, activated=activated), nn.ReLU()))


HELPERS: dict[str, Callable[[Tensor], object]] = {
    "a number from the size": lambda x: int(x.shape[2]),
    "a number from the data": lambda x: x.amax().item(),
    "a list of numbers": lambda x: x.amax((0, 2, 3)).tolist()[:1][0],
    "an array": lambda x: torch.from_numpy(x.mean((0, 2, 3)).numpy().copy()).view(1, -1, 1, 1),
    "a choice": lambda x: 2.0 if x.shape[2] > 10 else 3.0,
    "a choice of layers": lambda x: None if x.shape[2] > 10 else 1.0,
}


@pytest.mark.parametrize("helper", HELPERS.values(), ids=HELPERS)
def test_a_number_that_a_child_reads_from_the_input_is_no_constant(
    helper: Callable[[Tensor], object],
) -> None:
    def step(m: Any, x: Tensor) -> Tensor:
        factor = m.helper(x)
        return m.layers(x) * (2.0 if factor is None else factor)

    fold(nn.Sequential(Host(step, Helper(helper))))


PASSED: dict[str, Step] = {
    "the size": lambda m, x: m.helper(x, int(x.shape[2])),
    "the size, by name": lambda m, x: m.helper(x, factor=int(x.shape[2])),
    "data": lambda m, x: m.helper(x, x.amax().item()),
    "a tensor made of data": lambda m, x: m.helper(x, torch.tensor(x.amax().item(), dtype=x.dtype)),
    "the size itself": lambda m, x: m.helper(x, x.shape[2]),
}


@pytest.mark.parametrize("step", PASSED.values(), ids=PASSED)
def test_a_number_that_a_parent_reads_from_the_input_is_no_constant(step: Step) -> None:
    fold(nn.Sequential(Host(step, Scaled())))


def test_a_number_that_a_child_passes_on_is_no_constant() -> None:
    """Read by the parent, given by name, handed down by position: the block at the end cannot know where it came from."""

    class Passing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Scaled()

        def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
            return self.block(x, factor)

    fold(nn.Sequential(Host(lambda m, x: m.helper(x, factor=int(x.shape[2])), Passing())))


def test_an_attribute_that_a_forward_sets_is_no_constant() -> None:
    def step(m: Any, x: Tensor) -> Tensor:
        m.helper.factor = x.amax().item()
        return m.helper(x)

    fold(nn.Sequential(Host(step, Scaled())))


def test_a_constant_that_a_forward_passes_folds() -> None:
    """What no number of the input reaches is a constant, whoever passes it."""
    step: Step = lambda m, x: m.helper(x, 0.25)  # noqa: E731
    folded, report = fold(nn.Sequential(Host(step, Scaled())))
    assert report.changed
    assert convolutions(folded) == 2  # the host's own layers are not called, and stay


@pytest.mark.parametrize("by_name", [False, True])
def test_two_calls_that_differ_in_a_number_do_not_fold_alike(by_name: bool) -> None:
    class Blend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor, alpha: float = 1.0) -> Tensor:
            return self.a(x) * alpha + self.b(x)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blend = Blend()

        def forward(self, x: Tensor) -> Tensor:
            if by_name:
                return F.relu(self.blend(F.relu(self.blend(x, alpha=0.5)), alpha=2.0))
            return F.relu(self.blend(F.relu(self.blend(x, 0.5)), 2.0))

    fold(Twice())


def test_a_child_called_by_name_still_takes_its_arguments() -> None:
    class Blend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor, alpha: float = 1.0) -> Tensor:
            return self.a(x) * alpha + self.b(x)

    fold(nn.Sequential(Host(lambda m, x: m.helper(x, alpha=0.5), Blend())))
    fold(nn.Sequential(Host(lambda m, x: m.helper(x=x), Blend())))


class Padding(nn.Conv2d):
    """A convolution that pads by the size, so that its output has ceil(size / stride) entries."""

    def forward(self, input: Tensor) -> Tensor:
        sides = []
        for n, k, s in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(n / s) - 1) * s + k - n, 0)
            sides += [total // 2, total - total // 2]
        padded = F.pad(input, sides) if any(sides) else input
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Sneaking(nn.Conv2d):
    """Twice as much above a size."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y if input.shape[2] < 10 else y * 2


class Unbiased(nn.Conv2d):
    """A convolution that knows of no bias."""

    def forward(self, input: Tensor) -> Tensor:
        pad = [1, 1, 1, 1] if input.shape[2] % 2 else [0, 1, 0, 1]
        return F.conv2d(F.pad(input, pad), self.weight, None, self.stride)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (3, 1), (5, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_that_pads_by_the_size_takes_a_norm_into_its_own_weight(
    kernel: int, stride: int, bias: bool
) -> None:
    model = nn.Sequential(Padding(4, 6, kernel, stride, bias=bias), nn.BatchNorm2d(6), nn.ReLU())
    folded, report = fold(model, SMALL, ODD, (1, 4, 8, 12), (1, 4, 10, 7))
    assert report.changed
    assert type(folded[0]) is Padding
    assert "BatchNorm" not in type(folded[1]).__name__


def test_nothing_is_folded_across_a_padding_that_only_other_sizes_have() -> None:
    """At an even size this layer pads nothing, so what stands before it seems to reach its convolution."""
    model = nn.Sequential(nn.BatchNorm2d(4), Padding(4, 6, 2, 2), nn.ReLU())
    fold(model, (1, 4, 8, 8), (1, 4, 9, 9), (1, 4, 7, 8))


@pytest.mark.parametrize("kind", [Sneaking, Unbiased])
def test_a_layer_that_does_more_than_its_op_is_left_alone(kind: type[nn.Conv2d]) -> None:
    model = nn.Sequential(kind(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    _, report = fold(model, SMALL, ODD, (1, 4, 10, 10))
    assert not report.changed
    assert report.refused


def test_a_parametrized_layer_of_somebodys_own_is_not_taken_for_torchs() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(Sneaking(4, 4, 3))
    _, report = fold(nn.Sequential(layer, nn.BatchNorm2d(4), nn.ReLU()))
    assert not report.changed


def test_observed_is_believed_where_it_is_asked_for() -> None:
    model = drawn(nn.Sequential(Host(branches_on_size)))
    x = x_of(*SMALL)
    left, believed = reparameterize(model, x), reparameterize(model, x, trust="observed")
    assert errors(believed, model, x)[0] <= 1e-10
    assert errors(left, model, x_of(*ODD))[0] <= 1e-10


def test_a_constant_that_a_forward_changes_later_is_taken_as_it_was() -> None:
    def step(m: Any, x: Tensor) -> Tensor:
        scale = torch.full((1,), 2.0, dtype=x.dtype)
        y = m.layers(x) * scale
        scale.mul_(5.0)
        return F.relu(y) * scale

    fold(nn.Sequential(Host(step)))


def test_a_parent_that_reads_a_childs_statistics_keeps_them() -> None:
    class Borrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.norm(self.conv(x)))
            return y + F.batch_norm(y, self.norm.running_mean, self.norm.running_var)

    fold(nn.Sequential(Borrowing()))


def test_layers_that_a_list_holds_too_are_left_alone() -> None:
    class Listing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 3)
            self.ops: list[Any] = [self.conv]

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.ops[0](x)))

    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.after: dict[str, Any] = {"norm": self.norm}

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.after["norm"](self.conv(x)))

    fold(nn.Sequential(Listing()))
    _, report = fold(nn.Sequential(Norms()))
    assert {place.how for place in report.folded} <= {"graph"}, "a layer that a dict holds too was swapped"


def test_a_crop_to_a_position_is_no_crop_of_a_border() -> None:
    """``[1:5]`` leaves four entries of any size; as a border it would pad where the size is small."""
    for step in (
        lambda m, x: m.helper(x)[:, :, 1:5] * 2.0,
        lambda m, x: m.helper(x)[:, :, :5, -4:-1] * 2.0,
        lambda m, x: m.helper(x)[:, :, 1:-2, ::2] * 2.0,
    ):
        fold(nn.Sequential(Host(step, nn.Conv2d(4, 4, 1, bias=False), activated=False), nn.ReLU()))


def test_values_of_many_axes_fold_around() -> None:
    """Windows of a picture are six axes: no convolution runs over four spatial ones, and none is tried."""

    def step(m: Any, x: Tensor) -> Tensor:
        windows = x.reshape(-1, 4, 3, 3, 3, 3) * 0.5 + 1
        return m.layers(F.pad(windows, (0, 0), value=0.5).reshape(-1, 4, 9, 9))

    fold(nn.Sequential(Host(step)), SMALL, (3, 4, 9, 9))


def test_division_by_zero_and_other_kinds_of_number_are_left_alone() -> None:
    fold(nn.Sequential(Host(lambda m, x: (m.layers(x) + 1j).abs())))
    model = drawn(nn.Sequential(Host(lambda m, x: m.layers(x) / 0.0)))
    x = x_of(*SMALL)
    with torch.no_grad():
        assert torch.equal(reparameterize(model, x)(x), model(x))
