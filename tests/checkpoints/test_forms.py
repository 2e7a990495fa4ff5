"""Training form, expanded form and deploy form of one network: told apart, converted where that is exact, else refused."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.checkpoints.test_load import refused
from tests.support import fold_error, randomize
from unbranch import expand, reparameterize
from unbranch.checkpoints import CheckpointError, load
from unbranch.expand import calibrate
from unbranch.models.yolo import Conv


class Net(nn.Module):
    """A plain convolution with its norm, and a block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.block = Conv(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(torch.relu(self.norm(self.stem(x))))


X = torch.linspace(-1, 1, 2 * 3 * 19 * 15, dtype=torch.float64).reshape(2, 3, 19, 15).mul(50).sin()


def built() -> Net:
    return Net().double().eval()


@pytest.fixture
def trained(generator: torch.Generator) -> nn.Module:
    return randomize(built(), generator, X)


@pytest.fixture
def expanded(trained: nn.Module) -> nn.Module:
    wide = expand(trained, "repvgg", X)
    calibrate(wide, [X])
    return wide


def folded(net: nn.Module) -> nn.Module:
    return reparameterize(net, X)


def test_expanded_weights_give_a_plain_network_their_branches(
    trained: nn.Module, expanded: nn.Module, tmp_path: Path
) -> None:
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in expanded.state_dict().items()}}, tmp_path / "a.pth"
    )
    plain = built()
    result = load(plain, tmp_path / "a.pth", example_inputs=X)
    assert (result.form, result.expanded) == ("expanded", ("stem", "block.branches.dense.0"))
    assert "2 layers of the model were given the branches that the file has" in str(result)
    assert fold_error(plain(X), trained(X)) <= 1e-10
    assert fold_error(folded(plain)(X), trained(X)) <= 1e-10
    again = load(plain, tmp_path / "a.pth")
    assert (again.form, again.expanded) == ("expanded", ())


def test_a_prefix_before_a_network_of_which_every_layer_is_expanded(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)).double().eval()

    wide = expand(net(), "acnet", X)
    torch.save({f"module.{name}": value for name, value in wide.state_dict().items()}, tmp_path / "a.pth")
    assert load(net(), tmp_path / "a.pth", example_inputs=X).expanded == ("0",)


def test_a_plain_network_is_unchanged_where_expanded_weights_do_not_fit(
    expanded: nn.Module, tmp_path: Path
) -> None:
    state = expanded.state_dict()
    save_file(
        {k: v for k, v in state.items() if k != "stem.branches.pointwise.norm.weight"},
        tmp_path / "a.safetensors",
    )
    assert "those of none of" in refused(built(), tmp_path / "a.safetensors")
    save_file(state | {"other.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    plain = built()
    kinds = [type(module) for module in plain.modules()]
    assert "left over 1: other.weight" in refused(plain, tmp_path / "a.safetensors")
    assert [type(module) for module in plain.modules()] == kinds


@pytest.mark.parametrize(
    ("of", "into", "says"),
    [
        ("trained", "expanded", "without branches in 2 layers that the model has expanded"),
        ("folded", "expanded", "without branches in 1 layers that the model has expanded"),
        ("folded", "trained", "branches cannot be recovered"),
        ("trained", "folded", "that the model has folded and cannot get back"),
        ("expanded", "folded", "that the model has folded and cannot get back"),
    ],
)
def test_other_forms_are_refused_with_their_keys(
    trained: nn.Module, expanded: nn.Module, tmp_path: Path, of: str, into: str, says: str
) -> None:
    forms = {"trained": trained, "expanded": expanded, "folded": switched(trained)}
    save_file(forms[of].state_dict(), tmp_path / "a.safetensors")
    model = forms[into]
    assert says in refused(model, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(model, tmp_path / "a.safetensors")
    here, there = model.state_dict().keys(), forms[of].state_dict().keys()
    assert set(caught.value.left_over)
    assert set(caught.value.left_over) <= there - here
    assert set(caught.value.missing)
    assert not set(caught.value.missing) & there


def switched(net: nn.Module) -> nn.Module:
    """The block in deploy form, and the norm behind the plain convolution folded too."""
    copied = copy.deepcopy(net)
    block = copied.get_submodule("block")
    assert isinstance(block, Conv)
    block.switch_to_deploy()
    return folded(copied)


def test_norms_folded_into_plain_convolutions(tmp_path: Path, generator: torch.Generator) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).double().eval()

    trained = randomize(net(), generator, X)
    save_file(folded(trained).state_dict(), tmp_path / "a.safetensors")
    assert "norms folded into its convolutions and not to be recovered" in refused(
        net(), tmp_path / "a.safetensors"
    )
    deployed = folded(net())
    load(deployed, tmp_path / "a.safetensors")
    assert fold_error(deployed(X), trained(X)) <= 1e-10


@pytest.mark.parametrize("bias", [False, True])
def test_plain_and_folded_weights_are_told_apart_with_biases_too(
    bias: bool, tmp_path: Path, generator: torch.Generator
) -> None:
    def net() -> nn.Module:
        layers = (nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8), nn.ReLU())
        return nn.Sequential(*layers).double().eval()

    trained = randomize(net(), generator, X)
    deployed = folded(trained)
    save_file(trained.state_dict(), tmp_path / "plain.safetensors")
    save_file(deployed.state_dict(), tmp_path / "folded.safetensors")
    said = refused(net(), tmp_path / "folded.safetensors")
    assert "in deploy form, its norms folded into its convolutions" in said
    assert "the model is in plain form, with norms: load it into unbranch.reparameterize(model)" in said
    assert "reinit" not in said
    for options in ({}, {"reinit": ["1"]}):
        said = refused(deployed, tmp_path / "plain.safetensors", **options)
        assert "in plain form, with 1 norms that the model has folded and cannot get back (1)" in said
        assert "load it into the network as it was built, then unbranch.reparameterize that" in said
        assert "reinit" not in said
    again = folded(net())
    load(again, tmp_path / "folded.safetensors")
    assert fold_error(again(X), trained(X)) <= 1e-10


def test_a_part_that_starts_afresh_may_hold_norms(tmp_path: Path, generator: torch.Generator) -> None:
    def net(channels: int) -> nn.Module:
        head = nn.Sequential(nn.Conv2d(8, channels, 1), nn.BatchNorm2d(channels))
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), head).double().eval()

    trained = randomize(net(4), generator, X)
    save_file(trained.state_dict(), tmp_path / "plain.safetensors")
    save_file(folded(trained).state_dict(), tmp_path / "folded.safetensors")
    assert load(net(5), tmp_path / "plain.safetensors", reinit=["3"]).reinit
    assert load(folded(net(5)), tmp_path / "folded.safetensors", reinit=["3"]).reinit
    lacking = {name: value for name, value in trained.state_dict().items() if not name.startswith("3.1.")}
    save_file(lacking, tmp_path / "lacking.safetensors")
    assert load(net(4), tmp_path / "lacking.safetensors", reinit=["3.1"]).reinit
    damaged = {name: value for name, value in trained.state_dict().items() if name != "1.running_var"}
    save_file(damaged, tmp_path / "damaged.safetensors")
    assert "missing 1: 1.running_var" in (said := refused(net(4), tmp_path / "damaged.safetensors"))
    assert "reinit" not in said


def test_folding_never_touches_the_training_copy(expanded: nn.Module) -> None:
    expanded.train()
    for module in expanded.modules():
        module.training = False
    state = copy.deepcopy(expanded.state_dict())
    structure = [(name, id(module), module.training) for name, module in expanded.named_modules()]
    learning = [(name, id(p), p.requires_grad) for name, p in expanded.named_parameters()]
    deployed = folded(expanded)
    with torch.no_grad():
        for parameter in deployed.parameters():
            parameter.zero_()
    assert [(name, id(module), module.training) for name, module in expanded.named_modules()] == structure
    assert [(name, id(p), p.requires_grad) for name, p in expanded.named_parameters()] == learning
    assert all(torch.equal(value, state[name]) for name, value in expanded.state_dict().items())
    expanded.train()(X).square().mean().backward()
