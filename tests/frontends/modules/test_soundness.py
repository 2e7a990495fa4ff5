"""What one run does not show, and what others still read: such places are left as they are, the rest folds."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontends.modules.checks import conv_norm, drawn, errors, x_of
from unbranch import explain, reparameterize, verify

X = (1, 3, 8, 8)


@dataclass(slots=True)
class Slots:
    first: Any
    second: Any


class Own(nn.Module):
    """A convolution and its norm, between them and behind them whatever a test does."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.point, self.before = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(3)
        self.more, self.held, self.count = nn.Conv2d(6, 6, 1), {}, [1]
        self.body = forward
        self.register_buffer("steps", torch.ones(()))

    def forward(self, *args: Any) -> Any:
        return self.body(self, *args)


def make(forward: Callable[..., Any]) -> Any:
    return drawn(Own(forward))


def same(model: nn.Module, folded: nn.Module, *args: Any) -> None:
    assert max(errors(folded, model, *args)) <= 1e-10


def test_one_tensor_in_two_places_is_two_inputs() -> None:
    model, x = make(lambda m, p, q: (m.conv(p) + m.point(q)).relu()), x_of(*X)
    folded = reparameterize(model, (x, x))
    p, q = x_of(2, 3, 5, 9), x_of(2, 3, 5, 9) * 2
    assert (folded(p, q) - model(p, q)).abs().max() <= 1e-10


def scale_a_slice(t: Tensor) -> None:
    t[:, :1] *= 3


def add_to_a_chunk(t: Tensor) -> None:
    first, _ = t.chunk(2, 1)
    first += 1


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "slice": scale_a_slice,
    "chunk": add_to_a_chunk,
    "view": lambda t: t.view(-1).mul_(3),
    "row": lambda t: t[:, :, 0].fill_(5),
    "foreach": lambda t: torch._foreach_mul_([t], 2.0),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_write_between_two_layers_is_seen(write: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        t = x.relu()
        z = m.before(t)
        WRITES[write](t)
        return m.point(z).relu() + t.sum()

    model = make(forward)
    same(model, reparameterize(model, x_of(*X)), x_of(*X))


@pytest.mark.parametrize("write", [lambda y: y.zero_(), lambda y: y.fill_(2), lambda y: y.copy_(y * 0)])
def test_what_is_overwritten_after_it_was_normed_is_not_what_was_normed(
    write: Callable[[Tensor], Any],
) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = m.norm(y)
        write(y)
        return z

    model = make(forward)
    same(model, reparameterize(model, x_of(*X)), x_of(*X))


def windows(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    cut = x.view(n, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 8, 8)
    y = m.norm(m.conv(cut)).view(n, h // 8, w // 8, 6, 8, 8)
    return (y.permute(0, 3, 1, 4, 2, 5).reshape(n, 6, h, w) + m.point(x)).relu()


@pytest.mark.parametrize(
    ("forward", "other"),
    [
        (windows, (1, 3, 16, 16)),
        (lambda m, x: m.norm(m.conv(x).reshape(-1, 6, 8, 8)), (1, 3, 16, 16)),
        (lambda m, x: m.norm(m.conv(x).reshape(1, 6, -1, 8)), (2, 3, 8, 8)),
        (lambda m, x: m.norm(torch.reshape(input=m.conv(x), shape=(-1, 6, 8, 8))), (1, 3, 16, 16)),
    ],
    ids=["windows", "batch of windows", "one picture", "by name"],
)
def test_a_view_that_does_nothing_at_one_size_does_something_at_another(
    forward: Callable[..., Tensor], other: tuple[int, ...]
) -> None:
    model = make(forward)
    folded = reparameterize(model, x_of(*X))
    for size in (X, other):
        x = x_of(*size)
        assert folded(x).shape == model(x).shape
        same(model, folded, x)


Z = torch.zeros(X, dtype=torch.float64)
LOOKS: dict[str, Callable[[Tensor], Any]] = {
    "equal": lambda x: x.equal(Z),
    "allclose": lambda x: x.allclose(Z),
    "nonzero": lambda x: x.sum().is_nonzero(),
    "format": lambda x: f"{x.sum()}" == "0",
    "repr": lambda x: repr(x.sum()) == "0",
    "complex": lambda x: complex(x.sum()) == 0,
    "split": lambda x: len(x.split(8, 3)) == 1,
    "rows": lambda x: len(x.split(8, 2)) == 1,
    "split by name": lambda x: len(torch.split(tensor=x, split_size_or_sections=8, dim=2)) == 1,
    "equal by name": lambda x: torch.equal(input=x, other=Z),
    "unbind": lambda x: len(x.unbind()) == 1,
    "iterate": lambda x: len(list(iter(x))) == 1,
    "bytes": lambda x: x.nbytes > 100,
    "storage": lambda x: x.untyped_storage().size() > 3,
    "same size": lambda x: x.is_same_size(Z),
    "copy": lambda x: copy.copy(x.shape[0]) == 1,
    "deepcopy": lambda x: copy.deepcopy(x.shape)[0] == 1,
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_at_data_or_size_is_seen(look: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.more(y) if LOOKS[look](x) else y

    assert not explain(nn.Sequential(make(forward), nn.ReLU()).eval(), x_of(*X)).changed


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: Slots(m.norm(y := m.conv(x)).relu(), y),
        lambda m, x: iter([m.norm(y := m.conv(x)).relu(), y]),
    ],
    ids=["slots", "iterator"],
)
def test_a_value_that_leaves_in_any_container_stays(forward: Callable[..., Any]) -> None:
    model = make(forward)
    folded = reparameterize(model, x_of(*X))
    for a, b in zip(parts(folded(x_of(*X))), parts(model(x_of(*X))), strict=True):
        assert (a - b).abs().max() <= 1e-10


def parts(outputs: Any) -> list[Tensor]:
    return [outputs.first, outputs.second] if isinstance(outputs, Slots) else list(outputs)


def test_inputs_in_slots_are_inputs() -> None:
    model = make(lambda m, x, o: (m.norm(m.conv(x)) * o.first).relu())
    one, two = Slots(x_of(1, 1), None), Slots(x_of(1, 1) * 3, None)
    folded = reparameterize(model, (x_of(*X), one))
    assert (folded(x_of(*X), two) - model(x_of(*X), two)).abs().max() <= 1e-10


def test_what_a_forward_keeps_in_a_dict_is_read_and_nothing_is_left_there() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        m.held["y"] = y
        m.held.setdefault("list", []).append(y)
        return m.norm(y).relu()

    model = make(forward)
    folded = reparameterize(model, x_of(*X))
    explain(model, x_of(*X))
    assert verify(model, folded, x_of(*X))
    assert model.held == folded.held == {}
    model(x_of(*X)), folded(x_of(*X))
    assert (model.held["y"] - folded.held["y"]).abs().max() <= 1e-10


def counted(m: Any, x: Tensor) -> Tensor:
    m.count[0] += 1
    return m.norm(m.conv(x)) * m.count[0]


def stepped(m: Any, x: Tensor) -> Tensor:
    m.steps = m.steps + 1
    return m.norm(m.conv(x)) * m.steps


@pytest.mark.parametrize("forward", [counted, stepped])
def test_what_changes_from_call_to_call_is_no_constant(forward: Callable[..., Tensor]) -> None:
    model = make(forward)
    folded = reparameterize(model, x_of(*X))
    for _ in range(3):
        same(model, folded, x_of(*X))


def test_what_a_forward_makes_or_replaces_is_put_back() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.made = nn.ReLU()
        m.scale = nn.Parameter(m.scale * 1)
        return m.made(m.norm(m.conv(x)) * m.scale)

    model = make(forward)
    model.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    scale = model.scale
    explain(model, x_of(*X))
    assert model.scale is scale
    assert "made" not in model._modules
    model(x_of(*X)).sum().backward()


def test_an_argument_is_never_swallowed() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = conv_norm(3, 6)

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return F.relu(self.layers(x) * scale)

    model = drawn(Scaled())
    folded, report = reparameterize(model, x_of(*X), return_report=True)
    assert report.changed
    for scale in (1.0, 3.0):
        assert (folded(x_of(*X), scale) - model(x_of(*X), scale)).abs().max() <= 1e-10


def test_a_forward_may_empty_the_container_that_it_is_given() -> None:
    def forward(m: Any, given: dict[str, Tensor]) -> Tensor:
        x = given.pop("x")
        return (m.conv(x) + m.point(x)).relu()

    model, given = make(forward), {"x": x_of(*X)}
    folded = reparameterize(model, (given,))
    assert list(given) == ["x"]
    assert (folded({"x": x_of(*X)}) - model({"x": x_of(*X)})).abs().max() <= 1e-10


def test_helpers_of_torch_that_insist_on_numbers_get_them() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        torch.broadcast_shapes(x.shape[2:], (1, 1))
        return m.norm(m.conv(x))

    model = make(forward)
    same(model, reparameterize(model, x_of(*X)), x_of(*X))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_scripted_child_that_was_frozen_has_no_mode() -> None:
    child: Any = torch.jit.freeze(torch.jit.script(drawn(conv_norm(6, 6))))
    model = nn.Sequential(drawn(conv_norm(3, 6)), child).eval()
    folded, report = reparameterize(model, x_of(*X), return_report=True)
    assert report.changed
    same(model, folded, x_of(*X))
