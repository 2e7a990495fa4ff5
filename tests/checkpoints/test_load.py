"""Other people's weights in our networks: the same outputs, or one line and nothing changed."""

import argparse
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file, save_model
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from tests.checkpoints.theirs import their_mobileone, their_repvgg
from tests.support import fold_error, randomize
from unbranch import models
from unbranch.blocks import RepVGGBlock
from unbranch.checkpoints import CheckpointError, LoadResult, load


def our_repvgg(**options: Any) -> models.RepVGG:
    chosen: dict[str, Any] = {"num_classes": 5, **options}
    return models.RepVGG((2, 1), (16, 16, 32), groups=2, se=1 / 16, **chosen)


def our_mobileone(**options: Any) -> models.MobileOne:
    chosen: dict[str, Any] = {"num_classes": 5, **options}
    return models.MobileOne((2, 1), (16, 16, 32), num_branches=2, se_depths=(0, 1), **chosen)


PAIRS: dict[str, tuple[Callable[..., nn.Module], Callable[..., models.Backbone]]] = {
    "RepVGG's": (their_repvgg, our_repvgg),
    "MobileOne's": (their_mobileone, our_mobileone),
}
X = torch.linspace(-1, 1, 2 * 3 * 33 * 26, dtype=torch.float64).reshape(2, 3, 33, 26).mul(50).sin()


@pytest.fixture(params=list(PAIRS))
def whose(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def theirs(whose: str, generator: torch.Generator) -> nn.Module:
    return randomize(PAIRS[whose][0]().double(), generator, X).eval()


@pytest.fixture
def ours(whose: str) -> models.Backbone:
    return PAIRS[whose][1]().double().eval()


@pytest.fixture
def repvgg(generator: torch.Generator) -> nn.Module:
    return randomize(our_repvgg().double(), generator, X).eval()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def refused(model: nn.Module, path: Path, **options) -> str:
    """The one line of the error; the model is as it was."""
    before = snapshot(model)
    with pytest.raises(CheckpointError) as caught:
        load(model, path, **options)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text


def test_their_names(whose: str, theirs: nn.Module, ours: models.Backbone, tmp_path: Path) -> None:
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    result = load(ours, tmp_path / "a.pth")
    assert (result.names, result.form, result.wrapper, result.dtypes) == (whose, "training", "", ("float64",))
    assert set(result.loaded) == set(ours.state_dict())
    assert fold_error(ours(X), theirs(X)) <= 1e-10


def test_their_deploy_form(
    whose: str, ours: models.Backbone, tmp_path: Path, generator: torch.Generator
) -> None:
    theirs = randomize(PAIRS[whose][0](deploy=True).double(), generator).eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    text = refused(ours, tmp_path / "a.pth")
    assert "in deploy form" in text
    assert "model.switch_to_deploy(), then load" in text
    ours.switch_to_deploy()
    result = load(ours, tmp_path / "a.pth")
    assert (result.names, result.form) == (whose, "deploy")
    assert fold_error(ours(X), theirs(X)) <= 1e-10


def test_training_form_into_a_deployed_model_is_refused(
    theirs: nn.Module, ours: models.Backbone, tmp_path: Path
) -> None:
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    ours.switch_to_deploy()
    assert "in training form" in refused(ours, tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("wrap", "wrapper"),
    [
        (lambda w: {"state_dict": w, "epoch": 3}, "state_dict"),
        (lambda w: {"model": w, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1)}, "model"),
        (lambda w: {f"module.{k}": v for k, v in w.items()}, ""),
        (lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()}}, "state_dict"),
        (lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()}, ""),
        (lambda w: {"state_dict": zeros(w), "state_dict_ema": w}, "state_dict_ema"),
        (lambda w: {"model": zeros(w), "ema": {f"module.{k}": v for k, v in w.items()}}, "ema"),
        (lambda w: {"model": w, "ema": None, "model_ema": {}}, "model"),
        (lambda w: {"n_averaged": torch.tensor(7)} | {f"module.{k}": v for k, v in w.items()}, ""),
        (lambda w: {"ema": {"state_dict": w, "decay": 0.99}}, "ema.state_dict"),
    ],
    ids=[
        "state_dict",
        "model",
        "module.",
        "lightning",
        "compiled",
        "timm ema",
        "ema module",
        "empty ema",
        "swa",
        "nested",
    ],
)
def test_wrappers(wrap, wrapper: str, theirs: nn.Module, ours: models.Backbone, tmp_path: Path) -> None:
    torch.save(wrap(theirs.state_dict()), tmp_path / "a.ckpt")
    assert load(ours, tmp_path / "a.ckpt").wrapper == wrapper
    assert fold_error(ours(X), theirs(X)) <= 1e-10


def zeros(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for name, value in weights.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_safetensors(
    dtype: torch.dtype, theirs: nn.Module, ours: models.Backbone, tmp_path: Path
) -> None:
    theirs.to(dtype)
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    result = load(ours, tmp_path / "a.safetensors")
    assert result.dtypes == (str(dtype).removeprefix("torch."),)
    assert {p.dtype for p in ours.parameters()} == {torch.float64}
    assert fold_error(ours(X), theirs.double()(X)) <= 1e-10


def test_our_own_names_in_both_forms(repvgg: nn.Module, ours: models.Backbone, tmp_path: Path) -> None:
    fresh = our_repvgg().double().eval()
    torch.save(repvgg.state_dict(), tmp_path / "a.pt")
    assert load(fresh, tmp_path / "a.pt").names == "our own"
    before = fresh(X)
    fresh.switch_to_deploy()
    save_file(fresh.state_dict(), tmp_path / "b.safetensors")
    again = our_repvgg().double().eval()
    again.switch_to_deploy()
    assert load(again, tmp_path / "b.safetensors").form == "deploy"
    assert fold_error(again(X), before) <= 1e-10
    assert fold_error(repvgg(X), before) == 0


def test_the_format_of_before_1_6(repvgg: nn.Module, tmp_path: Path) -> None:
    torch.save(repvgg.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    fresh = our_repvgg().double().eval()
    load(fresh, tmp_path / "a.pth")
    assert fold_error(fresh(X), repvgg(X)) == 0


def test_wrapped_models(theirs: nn.Module, ours: models.Backbone, tmp_path: Path) -> None:
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    parallel = nn.DataParallel(ours)
    result = load(parallel, tmp_path / "a.pth", reinit=["head"])
    assert result.reinit == ("head.weight", "head.bias")
    compiled = torch.compile(parallel)
    assert isinstance(compiled, nn.Module)
    load(compiled, tmp_path / "a.pth")
    assert fold_error(ours(X), theirs(X)) <= 1e-10


def test_a_block_inside_another_network(tmp_path: Path, generator: torch.Generator) -> None:
    """The rules for a block serve it anywhere; the other layers keep their names."""
    theirs = nn.Sequential(nn.Conv2d(3, 16, 1), their_repvgg().get_submodule("stage1.1")).double()
    randomize(theirs, generator, X)
    ours = nn.Sequential(nn.Conv2d(3, 16, 1), RepVGGBlock(16, 16, groups=2, se=1 / 16)).double().eval()
    torch.save(theirs.eval().state_dict(), tmp_path / "a.pth")
    load(ours, tmp_path / "a.pth")
    assert fold_error(ours(X), theirs(X)) <= 1e-10


@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_b1g4", "repvgg_d2se", "mobileone_s0", "mobileone_s4"])
@pytest.mark.slow
def test_timm_s_weights_give_timm_s_outputs(name: str, tmp_path: Path, generator: torch.Generator) -> None:
    x = torch.randn(1, 3, 65, 47, dtype=torch.float64, generator=generator)
    peer = randomize(timm.create_model(name).double(), generator, x).eval()
    torch.save({"state_dict_ema": peer.state_dict()}, tmp_path / "a.pth")
    model = models.create(name).double().eval()
    assert isinstance(model, models.Backbone)
    result = load(model, tmp_path / "a.pth")
    assert (result.names, result.form) == ("timm's", "training")
    with torch.no_grad():
        assert fold_error(model(x), peer(x)) <= 1e-10
        torch.save(reparameterize_model(peer).state_dict(), tmp_path / "a.pth")
        expected = peer(x)
        refused(model, tmp_path / "a.pth")
        model.switch_to_deploy()
        result = load(model, tmp_path / "a.pth")
        assert (result.names, result.form) == ("timm's", "deploy")
        assert fold_error(model(x), expected) <= 1e-10


def test_another_number_of_classes(whose: str, theirs: nn.Module, tmp_path: Path) -> None:
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    model = PAIRS[whose][1](num_classes=9).double()
    text = refused(model, tmp_path / "a.pth")
    assert "of another shape 2: head.weight (5, 32) for (9, 32), head.bias (5,) for (9,)" in text
    assert text.endswith("reinit=['head'] would leave that part as it is")
    head = model.get_parameter("head.weight").clone()
    result = load(model, tmp_path / "a.pth", reinit=["head"])
    assert torch.equal(model.get_parameter("head.weight"), head)
    assert result.reinit == ("head.weight", "head.bias")
    assert set(result.loaded) | set(result.reinit) == set(model.state_dict())
    assert str(result).endswith("; started afresh: head.weight, head.bias")


def test_a_pyramid_takes_a_classifier_s_weights(whose: str, theirs: nn.Module, tmp_path: Path) -> None:
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    model = PAIRS[whose][1](out_indices=(0, 1)).double()
    text = refused(model, tmp_path / "a.pth")
    assert "left over" in text
    result = load(model, tmp_path / "a.pth", reinit=["head", "stages.1"])
    assert result.reinit == ()
    assert set(result.loaded) == set(model.state_dict())


def test_reinit_that_names_nothing(theirs: nn.Module, ours: models.Backbone, tmp_path: Path) -> None:
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="reinit='fc' names no part of the model; it has stem, stages, head"):
        load(ours, tmp_path / "a.pth", reinit="fc")


def test_missing_and_left_over_keys_are_listed(repvgg: nn.Module, tmp_path: Path) -> None:
    weights = repvgg.state_dict()
    gone = [name for name in weights if name.startswith("stages.0.1.branches.dense0")]
    for name in gone:
        del weights[name]
    weights["stages.0.1.branches.dense7.conv.weight"] = torch.zeros(1)
    torch.save(weights, tmp_path / "a.pth")
    before = snapshot(repvgg)
    with pytest.raises(CheckpointError) as caught:
        load(repvgg, tmp_path / "a.pth")
    assert caught.value.missing == tuple(name for name in gone if not name.endswith("num_batches_tracked"))
    assert caught.value.left_over == ("stages.0.1.branches.dense7.conv.weight",)
    assert all(name in str(caught.value) for name in caught.value.missing + caught.value.left_over)
    assert all(torch.equal(value, repvgg.state_dict()[name]) for name, value in before.items())


def test_absent_batch_counters_are_said_and_forgiven(repvgg: nn.Module, tmp_path: Path) -> None:
    weights = {k: v for k, v in repvgg.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "a.pth")
    result = load(our_repvgg().double(), tmp_path / "a.pth")
    assert len(result.counters) == len(repvgg.state_dict()) - len(weights) > 0
    assert str(result).endswith(f"; {len(result.counters)} batch counters are not in the file")


def test_another_architecture_is_one_line(theirs: nn.Module, tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).state_dict(), tmp_path / "a.pth")
    model = models.create("repvgg_a0")
    text = refused(model, tmp_path / "a.pth")
    assert text.endswith("is it a checkpoint of another network?")
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    text = refused(model, tmp_path / "a.pth")
    assert text.endswith("is it a checkpoint of another network?")
    assert len(text) < 900


def test_files_that_are_no_checkpoint(ours: models.Backbone, theirs: nn.Module, tmp_path: Path) -> None:
    good = tmp_path / "good.pth"
    torch.save(theirs.state_dict(), good)
    save_file(theirs.state_dict(), tmp_path / "good.safetensors")
    whole, tensors = good.read_bytes(), (tmp_path / "good.safetensors").read_bytes()
    legacy = tmp_path / "legacy.pth"
    torch.save(theirs.state_dict(), legacy, _use_new_zipfile_serialization=False)
    old = legacy.read_bytes()
    cases = {
        "empty.pth": (b"", "neither a torch checkpoint nor"),
        "text.pth": (b"epoch,loss\n1,0.3\n", "neither a torch checkpoint nor"),
        "half.pth": (whole[: len(whole) // 2], "damaged or truncated"),
        "tail.pth": (whole[:-30], "damaged or truncated"),
        "legacy.pth": (old[: len(old) // 2], "damaged or truncated"),
        "opening.pth": (old[:200], "damaged"),
        "tensors.pth": (tensors, "neither a torch checkpoint nor"),
        "empty.safetensors": (b"", "damaged, or no safetensors file"),
        "half.safetensors": (tensors[: len(tensors) // 2], "damaged, or no safetensors file"),
        "torch.safetensors": (whole, "damaged, or no safetensors file"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert words in refused(ours, tmp_path / name), name
    assert "there is no such file" in refused(ours, tmp_path / "absent.pth")
    assert "there is no such file" in refused(ours, tmp_path)


@pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # torch remarks on pickle protocols that it cannot be looking at
@pytest.mark.parametrize("legacy", [False, True])
def test_garbled_files_are_refused_or_read(legacy: bool, repvgg: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), path, _use_new_zipfile_serialization=not legacy)
    whole, draw = path.read_bytes(), random.Random(0)
    refusals = 0
    for _ in range(300):
        garbled = bytearray(whole)
        at = draw.randrange(len(whole))
        garbled[at : at + draw.choice((1, 20))] = draw.randbytes(draw.choice((0, 1, 20)))
        path.write_bytes(garbled)
        refusals += bool(refused(repvgg, path))
    assert refusals == 300


def test_files_of_something_else(ours: models.Backbone, theirs: nn.Module, tmp_path: Path) -> None:
    torch.save(theirs, tmp_path / "module.pth")
    assert "holds a pickled tests.checkpoints.theirs.TheirNet" in refused(ours, tmp_path / "module.pth")
    torch.save({"epoch": 3, "loss": [0.1]}, tmp_path / "log.pth")
    assert "holds no state dict (a dict)" in refused(ours, tmp_path / "log.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    assert "holds no state dict (a Tensor)" in refused(ours, tmp_path / "tensor.pth")


def test_integers_for_weights_are_refused(repvgg: nn.Module, tmp_path: Path) -> None:
    weights = repvgg.state_dict()
    weights["head.bias"] = torch.zeros(5, dtype=torch.int64)
    torch.save(weights, tmp_path / "a.pth")
    assert "head.bias torch.int64 (5,) for (5,)" in refused(repvgg, tmp_path / "a.pth")


def test_the_result_says_what_was_done(
    theirs: nn.Module, whose: str, ours: models.Backbone, tmp_path: Path
) -> None:
    torch.save({"ema": theirs.half().state_dict()}, tmp_path / "a.pth")
    result = load(ours, tmp_path / "a.pth")
    assert isinstance(result, LoadResult)
    count = len(ours.state_dict())
    expected = f"a.pth: {count} tensors loaded ({whose} names, training form, from ema, float16)"
    assert re.fullmatch(rf".*/{re.escape(expected)}", str(result))


def test_tensors_that_the_model_ties_need_stand_in_the_file_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.second.weight = self.first.weight

    model, other = Tied(), Tied()
    save_model(model, str(tmp_path / "tied.safetensors"))
    result = load(other, tmp_path / "tied.safetensors")
    assert torch.equal(other.second.weight, model.first.weight)
    assert len(result.loaded) == 4
    with pytest.raises(CheckpointError, match=r"missing 1: (first|second)\.weight"):
        load(
            nn.ModuleDict({"first": nn.Conv2d(3, 3, 1), "second": nn.Conv2d(3, 3, 1)}),
            tmp_path / "tied.safetensors",
        )
