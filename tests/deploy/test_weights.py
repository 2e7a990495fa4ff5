"""Weights: whole or not at all, in any copy of the model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unbranch.deploy import save_weights
from unbranch.deploy.weights import check_writable
from unbranch.detect.errors import InputError


def test_tied_and_strided_tensors_are_written_in_full(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[0].bias = nn.Parameter(torch.arange(8.0)[::2])
    save_weights(model, tmp_path / "w.safetensors", {"form": "deploy"})
    found = load_file(tmp_path / "w.safetensors")
    assert sorted(found) == sorted(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("place", ["file/w.safetensors", "."])
def test_a_place_that_cannot_be_written_is_said_before(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written|is a folder"):
        check_writable(tmp_path / place)


def test_asking_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "w.safetensors")
    assert list(tmp_path.iterdir()) == []
