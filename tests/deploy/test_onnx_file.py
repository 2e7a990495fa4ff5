"""ONNX files: what was written is run, at another batch too, and what does not agree gets no name."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.support import randomize
from unbranch.blocks import RepVGGBlock
from unbranch.deploy import export_onnx, onnx_file
from unbranch.deploy.onnx_file import open_session
from unbranch.detect.errors import InputError
from unbranch.fold.certificate import fold_error


class TwoInputs(nn.Module):
    """Two pictures in, a sum and a mean out."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RepVGGBlock(3, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        total = self.block(x) + self.block(y)
        return total, total.mean((2, 3))


class OnePicture(nn.Module):
    """Takes one picture at a time, so that the batch cannot be free."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1:
            raise ValueError("one picture at a time")
        return x.relu()


def test_several_inputs_and_outputs_with_a_free_batch(tmp_path: Path, generator: torch.Generator) -> None:
    x, y = torch.randn(2, 1, 3, 9, 11, generator=generator)
    model = TwoInputs().eval()
    randomize(model, generator, x, y)
    target = tmp_path / "folder" / "model.onnx"
    certificate = export_onnx(model, (x, y), target)
    assert certificate
    assert {check.size for check in certificate.checks} == {"1x3x9x11, 1x3x9x11", "3x3x9x11, 3x3x9x11"}
    x, y = torch.randn(2, 5, 3, 9, 11, generator=generator)
    found = open_session(target).run(None, {"input0": x.numpy(), "input1": y.numpy()})
    with torch.no_grad():
        for ours, theirs in zip(found, model(x, y), strict=True):
            assert fold_error(torch.from_numpy(ours), theirs) <= 1e-5
    assert [path.name for path in target.parent.iterdir()] == ["model.onnx"]


def test_a_batch_that_cannot_be_free_is_fixed_and_noted(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    certificate = export_onnx(OnePicture().eval(), (torch.randn(1, 3, 4, 4),), target)
    assert certificate
    assert "the batch is fixed at 1" in certificate.notes[0]
    shape = onnx.load(target).graph.input[0].type.tensor_type.shape
    assert [dimension.dim_value for dimension in shape.dim] == [1, 3, 4, 4]


def test_a_file_that_differs_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, model = onnx_file._write, RepVGGBlock(3, 4).eval()
    other = RepVGGBlock(3, 4).eval()
    monkeypatch.setattr(onnx_file, "_write", lambda _, *rest: honest(other, *rest))
    with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime and torch differ by"):
        export_onnx(model, (torch.randn(1, 3, 8, 8),), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said_in_a_line(tmp_path: Path) -> None:
    class Talks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(InputError, match="the export to ONNX failed") as caught:
        export_onnx(Talks().eval(), (torch.randn(1, 3),), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
