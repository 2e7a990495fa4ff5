"""The verbs that fold: what they print, what they write, and how they end."""

import json
import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import unbranch
from tests.support import randomize
from unbranch.blocks import RepVGGBlock
from unbranch.cli import app
from unbranch.cli.errors import FAILED, WRONG_INPUT
from unbranch.deploy.onnx_file import export_onnx, open_session
from unbranch.deploy.weights import save_weights
from unbranch.fold.certificate import fold_error

MODELS = '''
from torch import nn
from unbranch.blocks import RepVGGBlock


def branched(width=8):
    """Two blocks."""
    return nn.Sequential(RepVGGBlock(3, width, stride=2), RepVGGBlock(width, width))


def wide():
    return branched(12)


def ready():
    return branched().eval()


ONE = branched()
NOTHING = 3


def fails():
    raise KeyError("width")


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
'''


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return path


@pytest.fixture
def weights(tmp_path: Path, generator: torch.Generator) -> Path:
    """Weights and statistics of `branched`, all drawn."""
    model = nn.Sequential(RepVGGBlock(3, 8, stride=2), RepVGGBlock(8, 8))
    randomize(model, generator, torch.randn(4, 3, 33, 35, generator=generator))
    path = tmp_path / "weights.safetensors"
    save_weights(model, path, {})
    return path


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Standard output and error of a run that ends as it should."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.stdout + result.stderr + repr(result.exception)
    return result.stdout, result.stderr


def outputs(path: Path, x: Tensor) -> Tensor:
    """What the two folded blocks make of `x`, from the file alone."""
    model = nn.Sequential(RepVGGBlock(3, 8, stride=2), RepVGGBlock(8, 8)).eval()
    folded = unbranch.reparameterize(model, x)
    unbranch.load(folded, path)
    with torch.no_grad():
        return folded(x)


def test_folds_and_writes_weights_that_load_into_the_folded_model(
    models: Path, weights: Path, tmp_path: Path, generator: torch.Generator
) -> None:
    target = tmp_path / "new" / "folded.safetensors"
    size = ("--input-size", "33x35")
    out, err = run("reparameterize", f"{models}:branched", "-w", weights, "-o", target, *size)
    assert "folded 2 places" in out
    assert "equal" in out
    assert "conv 3x3 3->8 /2" in out
    assert f"wrote {target}" in err
    assert max(map(len, out.splitlines())) <= 80

    branched = nn.Sequential(RepVGGBlock(3, 8, stride=2), RepVGGBlock(8, 8)).eval()
    unbranch.load(branched, weights)
    x = torch.randn(2, 3, 29, 31, generator=generator)
    with torch.no_grad():
        assert fold_error(outputs(target, x), branched(x)) <= 1e-5


def test_json_is_all_that_stdout_holds(models: Path, weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "folded.safetensors"
    out, _ = run("reparameterize", f"{models}:branched", "-w", weights, "-o", target, "--json")
    data = json.loads(out)
    assert data["certificate"]["passed"] is True
    assert data["report"]["after"]["ops"] < data["report"]["before"]["ops"]
    assert data["written"] == str(target)
    assert [place["becomes"] for place in data["report"]["folded"]] == ["conv 3x3 3->8 /2", "conv 3x3 8->8"]


def test_writes_onnx_that_was_run_against_torch(models: Path, weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "folded.onnx"
    out, _ = run("reparameterize", f"{models}:branched", "-w", weights, "-o", target, "--input-size", 20)
    assert "(ONNX)" in out
    assert target.is_file()
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_explain_changes_nothing_and_says_why(models: Path) -> None:
    out, _ = run("explain", f"{models}:branched", "--where", "0*")
    assert "would fold 1 place" in out
    assert "not selected by where" in out
    data = json.loads(run("explain", f"{models}:plain", "--json")[0])
    assert data["report"]["folded"] == []
    assert "nothing to gain" in data["report"]["verdict"]


def test_verify_folds_by_default_and_tells_other_weights_apart(
    models: Path, weights: Path, tmp_path: Path
) -> None:
    spec = f"{models}:branched"
    target = tmp_path / "folded.safetensors"
    run("reparameterize", spec, "-w", weights, "-o", target)
    assert "equal" in run("verify", spec, "-w", weights)[0]
    assert "equal" in run("verify", spec, target, "-w", weights)[0]
    out, _ = run("verify", spec, target, code=FAILED)
    assert "NOT EQUAL" in out
    assert "FAIL" in out
    data = json.loads(run("verify", spec, f"{models}:wide", "--json", code=FAILED)[0])
    assert data["certificate"]["passed"] is False
    assert data["certificate"]["error"] == "inf"


def test_what_is_not_equal_is_not_written(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unbranch.cli.forms.module import ModuleNetwork

    honest = ModuleNetwork.reparameterize

    def wrong(self: ModuleNetwork, options: dict[str, object]) -> object:
        folded, report = honest(self, options)
        with torch.no_grad():
            next(folded.model.parameters()).add_(0.1)
        return folded, report

    monkeypatch.setattr(ModuleNetwork, "reparameterize", wrong)
    target = tmp_path / "folded.safetensors"
    out, err = run("reparameterize", f"{models}:branched", "-o", target, code=FAILED)
    assert "NOT EQUAL" in out
    assert "was not written" in err
    assert not target.exists()


def test_measured_costs_are_asked_for_with_their_runtime(models: Path) -> None:
    size = ("--input-size", "20")
    out, _ = run("explain", f"{models}:branched", "--cost", "measure", "--runtime", "onnxruntime", *size)
    assert "would fold" in out
    err = run("explain", f"{models}:branched", "--cost", "measure", "--runtime", "tvm", code=WRONG_INPUT)[1]
    assert "tvm" in err
    assert err.count("\n") == 1


def test_options_reach_the_factory_and_the_input(models: Path) -> None:
    out, _ = run("explain", f"{models}:branched", "--option", "width=5", "--input-size", "3x20x24", "--json")
    assert json.loads(out)["report"]["folded"][1]["becomes"] == "conv 3x3 5->5"


@pytest.mark.parametrize("name", ["ready", "ONE"])
def test_a_module_may_be_ready_made(models: Path, name: str) -> None:
    assert "would fold 2 places" in run("explain", f"{models}:{name}")[0]


def test_names_of_ours_and_of_other_libraries() -> None:
    assert "would fold" in run("explain", "unbranch:repvgg_a0", "--input-size", "64")[0]
    assert "would fold" in run("explain", "torchvision:resnet18", "--input-size", "64")[0]
    assert "would fold" in run("explain", "timm:repghostnet_050", "--input-size", "64")[0]


def test_a_network_without_weights_is_the_same_each_time(models: Path, tmp_path: Path) -> None:
    target = tmp_path / "folded.safetensors"
    run("reparameterize", f"{models}:branched", "-o", target)
    run("verify", f"{models}:branched", target)


class Named(nn.Module):
    """Two blocks whose input has a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(RepVGGBlock(3, 8, stride=2), RepVGGBlock(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def test_an_exported_program_is_folded_as_a_file(tmp_path: Path, generator: torch.Generator) -> None:
    model = Named().eval()
    x = torch.randn(1, 3, 21, 23, generator=generator)
    randomize(model, generator, x)
    source, target = tmp_path / "model.pt2", tmp_path / "folded.pt2"
    torch.export.save(torch.export.export(model, (x,)), source)
    out, _ = run("reparameterize", source, "-o", target)
    assert "equal" in out
    with torch.no_grad():
        assert fold_error(torch.export.load(target).module()(x), model(x)) <= 1e-5
    assert "equal" in run("verify", source, target)[0]
    for options in (["-o", tmp_path / "x.safetensors"], ["--trust", "observed"], ["-w", target]):
        run("reparameterize", source, *options, code=WRONG_INPUT)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        _, said = run("reparameterize", source, "-o", tmp_path / "full.pt2", code=WRONG_INPUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said.strip() == f"error: {tmp_path / 'full.pt2'}: cannot be written: File too large"
    assert sorted(tmp_path.iterdir()) == [target, source]


def test_an_onnx_model_is_folded_as_a_file(tmp_path: Path, generator: torch.Generator) -> None:
    model = Named().eval()
    x = torch.randn(1, 3, 21, 23, generator=generator)
    randomize(model, generator, x)
    source, target, odd = tmp_path / "model.onnx", tmp_path / "folded.onnx", tmp_path / "odd.onnx"
    export_onnx(model, (x,), source)
    out, _ = run("reparameterize", source, "-o", target)
    assert "folded 2 places" in out
    assert "equal" in out
    found = open_session(target).run(None, {"input": x.numpy()})[0]
    with torch.no_grad():
        assert fold_error(torch.from_numpy(found), model(x)) <= 1e-5
    assert "equal" in run("verify", source, target, "--batch", "2")[0]
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    export_onnx(model, (x,), odd)
    assert "NOT EQUAL" in run("verify", source, odd, code=FAILED)[0]
    assert "would fold 2 places" in run("explain", source)[0]
    for options in (["-o", tmp_path / "x.safetensors"], ["--trust", "observed"], ["-w", target]):
        run("reparameterize", source, *options, code=WRONG_INPUT)


def test_bench_times_every_form_in_its_runtimes(models: Path, tmp_path: Path) -> None:
    picture = tmp_path / "times.png"
    quick = ("--pairs", "10", "--seconds", "0", "--input-size", "20")
    out, err = run("bench", f"{models}:branched", *quick, "--picture", picture)
    for runtime in ("torch eager", "ONNX Runtime", "OpenVINO"):
        assert runtime in out
    assert max(map(len, out.splitlines())) <= 80
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {picture}" in err
    export_onnx(Named().eval(), (torch.zeros(1, 3, 20, 20),), tmp_path / "model.onnx")
    data = json.loads(run("bench", tmp_path / "model.onnx", *quick, "--json")[0])
    assert sorted(data["milliseconds"]) == ["onnxruntime", "openvino"]
    assert data["milliseconds"]["openvino"]["pairs"] == 10
    assert (
        "torch runs modules"
        in run("bench", tmp_path / "model.onnx", *quick, "--runtimes", "torch", code=WRONG_INPUT)[1]
    )
