import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from tests.support import randomize
from unbranch.frontends.exported import (
    ProgramFileError,
    load_exported,
    reparameterize_exported,
    save_exported,
    verify_exported,
)


@pytest.fixture
def program() -> ExportedProgram:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    net = randomize(net, torch.Generator().manual_seed(4)).eval()
    return torch.export.export(net, (torch.randn(2, 3, 9, 11),), dynamic_shapes=({0: Dim.AUTO, 2: Dim.AUTO},))


def test_saved_folded_loaded(program: ExportedProgram, tmp_path: Path) -> None:
    """Folded then saved, and saved then folded."""
    folded, _ = reparameterize_exported(program)
    save_exported(folded, tmp_path / "folded.pt2")
    save_exported(program, tmp_path / "raw.pt2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folded.pt2", "raw.pt2"]
    loaded = load_exported(tmp_path / "folded.pt2")
    assert verify_exported(program, loaded)
    assert not reparameterize_exported(loaded)[1].changed
    late, report = reparameterize_exported(load_exported(tmp_path / "raw.pt2"))
    assert len(report.folded) == 1
    certificate = verify_exported(program, late)
    assert certificate
    assert len({check.size for check in certificate.checks}) == 2


def _damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(64) + data[middle + 64 :]


def test_bad_files_are_one_line(program: ExportedProgram, tmp_path: Path) -> None:
    save_exported(program, tmp_path / "good.pt2")
    data = (tmp_path / "good.pt2").read_bytes()
    path = tmp_path / "bad.pt2"
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "no program")
    with zipfile.ZipFile(tmp_path / "hollow.zip", "w") as archive:
        archive.writestr("x/archive_format", "pt2")
        archive.writestr("x/models/model.json", "{}")
    cases = {
        "truncated": data[: len(data) // 2],
        "damaged": _damaged(data),
        "text": b"hello",
        "empty": b"",
        "weights": (tmp_path / "weights.pth").read_bytes(),
        "zip": (tmp_path / "other.zip").read_bytes(),
        "hollow": (tmp_path / "hollow.zip").read_bytes(),
    }
    for name, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(ProgramFileError, match=r"bad\.pt2") as caught:
            load_exported(path)
        assert "\n" not in str(caught.value), name
    with pytest.raises(FileNotFoundError, match=r"none\.pt2"):
        load_exported(tmp_path / "none.pt2")


def test_a_failed_save_leaves_nothing(
    program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    (tmp_path / "out.pt2").write_bytes(b"as it was")
    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_exported(program, tmp_path / "out.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt2"]
    assert (tmp_path / "out.pt2").read_bytes() == b"as it was"
    with pytest.raises(ValueError, match=r"ends in \.pt2"):
        save_exported(program, tmp_path / "out.onnx")
