"""What a folded program keeps, and what may be done with it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument

from tests.frontends.exported.nets import Net
from tests.support import fold_error, randomize
from unbranch.frontends.exported import explain_exported, reparameterize_exported, verify_exported


class Stages(nn.Module):
    """Two stages of conv and norm with named inputs and outputs, a buffer that counts, and one left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Conv2d(6, 5, 1)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("shift", torch.ones(5, 1, 1), persistent=False)

    def forward(self, image: Tensor, scale: Tensor) -> dict[str, Any]:
        self.seen.add_(1)
        y = self.second(self.first(image))
        return {"logits": self.head(y) * scale, "features": [y]}


def stages(**options: Any) -> tuple[Stages, ExportedProgram]:
    net = Stages().eval()
    randomize(net, torch.Generator().manual_seed(1))
    sizes = {"image": {0: Dim("batch", max=64), 2: Dim("height", min=8, max=512)}, "scale": None}
    inputs = (torch.randn(2, 3, 16, 20),), {"scale": torch.tensor(2.0)}
    return net, torch.export.export(net, *inputs, dynamic_shapes=sizes, **options)


def test_signature_and_names() -> None:
    _, program = stages()
    folded, _ = reparameterize_exported(program)
    assert folded.call_spec == program.call_spec
    assert folded.range_constraints == program.range_constraints
    assert folded.graph_signature.user_inputs == program.graph_signature.user_inputs
    assert folded.graph_signature.user_outputs == program.graph_signature.user_outputs
    names = [node.name for node in folded.graph.nodes if node.op == "placeholder"]
    arguments = [spec.arg for spec in folded.graph_signature.input_specs]
    assert [a.name for a in arguments if isinstance(a, TensorArgument)] == names
    kinds = [spec.kind for spec in folded.graph_signature.input_specs]
    assert kinds == sorted(kinds, key=[InputKind.PARAMETER, InputKind.BUFFER, InputKind.USER_INPUT].index)
    assert set(folded.state_dict) == {
        "head.weight",
        "head.bias",
        "seen",
        *(f"{stage}.reparameterized.{part}" for stage in ("first", "second") for part in ("weight", "bias")),
    }


def test_the_program_given_is_not_touched() -> None:
    _, program = stages()
    graph, state = str(program.graph), {k: v.clone() for k, v in program.state_dict.items()}
    specs = list(program.graph_signature.input_specs)
    folded, _ = reparameterize_exported(program)
    folded.module()(torch.randn(2, 3, 16, 20), scale=torch.tensor(1.0))
    assert str(program.graph) == graph
    assert program.graph_signature.input_specs == specs
    assert all(torch.equal(program.state_dict[k], v) for k, v in state.items())
    assert folded.state_dict["head.weight"] is program.state_dict["head.weight"]
    assert float(folded.state_dict["seen"]) == 1
    assert float(program.state_dict["seen"]) == 0


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
def test_preserved_module_signature_is_a_boundary() -> None:
    """The value that a preserved call returns is read from outside, so the norm behind it stays where it is."""
    _, plain = stages()
    net, program = stages(preserve_module_call_signature=("first.0",))
    folded, report = reparameterize_exported(program)
    assert len(report.folded) == len(reparameterize_exported(plain)[1].folded) - 1
    unflat = torch.export.unflatten(folded)
    x, scale = torch.randn(2, 3, 24, 20), torch.tensor(3.0)
    with torch.no_grad():
        assert fold_error(unflat(x, scale=scale)["logits"], net(x, scale)["logits"]) <= 1e-5


def test_folded_programs_go_on() -> None:
    """Decomposed, exported again, unflattened, and to ONNX."""
    net, program = stages()
    folded, _ = reparameterize_exported(program)
    x, scale = torch.randn(3, 3, 24, 20), torch.tensor(3.0)
    with torch.no_grad():
        expected = net(x, scale)["logits"]
        decomposed = folded.run_decompositions()
        again = torch.export.export(folded.module(), (x,), {"scale": scale})
        for run in (decomposed.module(), again.module(), torch.export.unflatten(folded)):
            assert fold_error(run(x, scale=scale)["logits"], expected) <= 1e-5


@pytest.mark.filterwarnings("ignore")
def test_folded_program_becomes_onnx() -> None:
    net = Net(lambda net, x: net.norm(net.conv(x)).relu()).eval()
    x = torch.randn(2, 4, 6, 9)
    folded, _ = reparameterize_exported(torch.export.export(randomize(net, torch.Generator()).eval(), (x,)))
    program = torch.onnx.export(folded, (x,), dynamo=True, verbose=False)
    assert program is not None
    assert [node.op_type for node in program.model.graph] == ["Conv", "Relu"]


@pytest.mark.parametrize(
    ("where", "places"),
    [
        ("first*", 1),
        ("second", 1),
        ("nowhere.*", 0),
        (lambda path, node: path.startswith("second"), 1),
        ("*", 2),
    ],
)
def test_where(where: str | Callable[[str, Any], bool], places: int) -> None:
    _, program = stages()
    report = explain_exported(program, where=where)
    assert len(report.folded) == places
    assert sum("where" in refused.reason for refused in report.refused) == 2 - places


def test_report_tells_what_the_result_has() -> None:
    _, program = stages()
    said, (folded, done) = explain_exported(program), reparameterize_exported(program)
    parameters = sum(p.numel() for p in folded.parameters())
    assert said.after.parameters == done.after.parameters == parameters
    assert said.before.parameters == sum(p.numel() for p in program.parameters())
    assert [f.place for f in said.folded] == ["first", "second"]
    assert explain_exported(folded).before.ops == said.after.ops


def test_training_mode_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    program = torch.export.export(net, (torch.zeros(2, 3, 8, 8),))
    with pytest.raises(ValueError, match=r"1 is a batch norm in training mode.*model\.eval\(\)"):
        reparameterize_exported(program)


def test_unknown_cost_is_refused() -> None:
    program = torch.export.export(nn.ReLU(), (torch.zeros(2, 3),))
    with pytest.raises(ValueError, match="cost='money'"):
        reparameterize_exported(program, cost="money")


def test_a_norm_without_statistics_is_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    program = torch.export.export(net, (torch.randn(2, 3, 8, 8),))
    folded, report = reparameterize_exported(program)
    assert not report.changed
    assert verify_exported(program, folded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_keep_their_dtype(dtype: torch.dtype) -> None:
    net = (
        randomize(Net(lambda net, x: net.norm(net.conv(x))), torch.Generator().manual_seed(2))
        .eval()
        .to(dtype)
    )
    program = torch.export.export(net, (torch.randn(2, 4, 6, 9, dtype=dtype),))
    folded, report = reparameterize_exported(program)
    assert len(report.folded) == 1
    assert {p.dtype for p in folded.parameters()} == {dtype}
    assert verify_exported(program, folded)


def test_channels_last_weights_stay_so() -> None:
    net = randomize(Net(lambda net, x: net.norm(net.conv(x))), torch.Generator().manual_seed(2)).eval()
    net = net.to(memory_format=torch.channels_last)
    program = torch.export.export(net, (torch.randn(2, 4, 6, 9).to(memory_format=torch.channels_last),))
    folded, _ = reparameterize_exported(program)
    weight = folded.state_dict["reparameterized.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_certificate_fails_where_the_programs_differ() -> None:
    _, program = stages()
    folded, report = reparameterize_exported(program)
    with torch.no_grad():
        folded.state_dict["second.reparameterized.bias"].add_(0.5)
    certificate = verify_exported(program, folded, report=report)
    assert not certificate
    assert certificate.worst_place is not None
    assert certificate.worst_place.startswith("second")


def test_certificate_says_that_shapes_are_static() -> None:
    program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(1, 3, 8, 8),))
    certificate = verify_exported(program, program)
    assert certificate
    assert any("static" in note for note in certificate.notes)


def test_a_value_filled_with_its_own_size_is_left_alone() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return y + torch.full_like(y, y.shape[2])

    net = Sized().double().eval()
    randomize(net, torch.Generator().manual_seed(2))
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    program = torch.export.export(net, (x,), dynamic_shapes=({2: Dim("height", min=4, max=64)},))
    folded, report = reparameterize_exported(program)
    assert [place.becomes for place in report.folded] == ["conv 3x3 3->4"]
    for image in (x, torch.randn(2, 3, 30, 7, dtype=torch.float64)):
        assert fold_error(folded.module()(image), net(image)) <= 1e-10


class Shifts(nn.Module):
    """Numbers per channel, last, which only a dense matrix could hold in one op."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return ((x.relu() + self.shift) * 2 - 1).relu()


@pytest.mark.parametrize("core", [False, True])
def test_scales_of_many_channels_become_no_matrix(core: bool) -> None:
    few, many = (torch.export.export(Shifts(c), (torch.randn(2, 7, 7, c),)) for c in (4, 512))
    if core:
        few, many = few.run_decompositions(), many.run_decompositions()
    assert not explain_exported(many).changed
    report = explain_exported(few)
    assert report.changed
    assert report.after.multiply_adds == 2 * 7 * 7 * 4 * 4
    assert report.folded[0].after.parameters == 4 * 4 + 4


def test_a_program_that_counts_its_calls_is_verified() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
            self.calls: Tensor
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return self.body(x) * self.calls

    sizes = ({0: Dim("batch", max=64), 2: Dim("height", min=8, max=64)},)
    program = torch.export.export(Counting().eval(), (torch.randn(2, 3, 9, 9),), dynamic_shapes=sizes)
    folded, report = reparameterize_exported(program)
    certificate = verify_exported(program, folded, report=report)
    assert certificate, str(certificate)
    assert len(certificate.checks) > 1
    assert not program.state_dict["calls"]
