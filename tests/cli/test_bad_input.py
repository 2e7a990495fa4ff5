"""Bad input: one line on stderr that says what is wrong, a code that is not 0, and no file."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.test_fold import MODELS, run
from unbranch.cli.errors import WRONG_INPUT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Models, and files that are not what they seem."""
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "broken.py").write_text("def model(:\n")
    (tmp_path / "missing.py").write_text("import a_module_that_nobody_wrote\n")
    (tmp_path / "text.pth").write_text("not a checkpoint\n")
    (tmp_path / "text.pt2").write_text("not a program\n")
    (tmp_path / "text.onnx").write_text("not a model\n")
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    whole = tmp_path / "whole.pth"
    torch.save({"0.weight": torch.zeros(400)}, whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:700])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:40])
    return tmp_path


def refused(folder: Path, *arguments: str) -> str:
    """The one line of a run that is refused and leaves nothing behind."""
    before = sorted(folder.rglob("*"))
    out, err = run(*(a.replace("@", f"{folder}/") for a in arguments), code=WRONG_INPUT)
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == before
    return err


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("repvgg_a0", "names no model"),
        ("unbranch:repvgg_a7", "did you mean repvgg_a"),
        ("timm:repvgg_a7", "timm has no model 'repvgg_a7'; did you mean"),
        ("torchvision:resnet19", "did you mean resnet18"),
        ("no_such_package.models:net", "No module named 'no_such_package'"),
        ("@absent.py:net", "there is no such file"),
        ("@broken.py:model", "cannot be imported: SyntaxError"),
        ("@missing.py:model", "No module named 'a_module_that_nobody_wrote'"),
        ("@models.py:brached", "has no 'brached'; did you mean branched"),
        ("@models.py:NOTHING", "is a int: name a function or a class"),
        ("@models.py:fails", "could not be built: KeyError: 'width'"),
        ("@absent.pt2", "there is no such file"),
        ("@text.pt2", "no .pt2 file"),
        ("@text.onnx", "no ONNX model"),
    ],
)
def test_model(folder: Path, spec: str, says: str) -> None:
    assert says in refused(folder, "reparameterize", spec, "-o", "@out.safetensors")


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("@absent.pth", "there is no such file"),
        ("@text.pth", "neither a torch checkpoint nor a .safetensors file"),
        ("@cut.pth", "truncated"),
        ("@cut.safetensors", "damaged"),
        ("@other.safetensors", "is it a checkpoint of another network?"),
    ],
)
def test_weights(folder: Path, file: str, says: str) -> None:
    assert says in refused(
        folder, "reparameterize", "@models.py:branched", "--weights", file, "-o", "@out.safetensors"
    )


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("@models.py/out.safetensors", "cannot be written"),
        ("/proc/nowhere/out.safetensors", "cannot be written"),
        ("@", "is a folder"),
        ("@out.txt", "written as .safetensors"),
    ],
)
def test_output(folder: Path, target: str, says: str) -> None:
    assert says in refused(folder, "reparameterize", "@models.py:branched", "-o", target)


def test_output_is_checked_before_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr("unbranch.cli.reparameterize.open_network", work)
    assert "cannot be written" in refused(
        folder, "reparameterize", "unbranch:repvgg_b3", "-o", "@models.py/x.safetensors"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--input-size", "large"], "write 224"),
        (["--input-size", "5x30x30"], "the model does not take it"),
        (["--input-size", "999999999x999999999"], "cannot be made"),
        (["--option", "width"], "write name=value"),
        (["--runtime", "abacus"], "runtime='abacus'"),
        (["--option", "depth=3"], "could not be built: TypeError"),
        (["--cost", "nothing"], "cost='nothing'"),
        (["--trust", "blind"], "trust='blind'"),
    ],
)
def test_options(folder: Path, options: list[str], says: str) -> None:
    assert says in refused(folder, "reparameterize", "@models.py:branched", *options)


def test_a_runtime_that_nobody_knows(folder: Path) -> None:
    assert "is none of torch, compile" in refused(
        folder, "bench", "@models.py:branched", "--runtimes", "torch,tvm"
    )


@pytest.mark.parametrize(
    ("absent", "arguments", "says"),
    [
        ("onnxruntime", ("bench", "@models.py:branched", "--runtimes", "onnxruntime"), "unbranch[onnx]"),
        ("mlxtend", ("demo", "-o", "@demo"), "unbranch[demo]"),
        ("openvino", ("demo", "-o", "@demo"), "unbranch[openvino]"),
        ("mlxtend", ("demo", "--classification", "-o", "@demo"), "unbranch[demo]"),
    ],
)
def test_an_extra_that_is_missing_is_named(
    folder: Path, absent: str, arguments: tuple[str, ...], says: str
) -> None:
    """The program as it is installed, where one module is not."""
    script = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from unbranch.cli import main
main()
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, *(a.replace("@", f"{folder}/") for a in arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == WRONG_INPUT
    assert f"{absent} is not installed: pip install '{says}'" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (folder / "demo").exists()


def test_a_fault_of_ours_keeps_its_traceback_on_demand(folder: Path) -> None:
    _, err = run("--traceback", "explain", f"{folder}/models.py:fails", code=WRONG_INPUT)
    assert "Traceback" in err
    assert "KeyError" in err
