"""Our own checkpoints: whole or not there, and built again as they were saved."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support import randomize
from unbranch.detect.checkpoint import load_backbone, load_extra, load_model, save
from unbranch.detect.errors import InputError
from unbranch.models import create
from unbranch.models.yolov5 import YOLOv5, yolov5
from unbranch.models.yolov7 import YOLOv7, yolov7


def network() -> YOLOv5:
    made = yolov5(
        "yolov5n",
        channels=[8, 8, 16, 24, 32],
        names=["ä", 'b "c"'],
        block={"stage2": "repvgg"},
        activation="relu",
    )
    randomize(made, torch.Generator().manual_seed(2), torch.rand(1, 3, 64, 64))
    with torch.no_grad():
        made.set_anchors(torch.rand(3, 3, 2) * 40 + 2)
    return made.eval()


@pytest.mark.parametrize("folded", [False, True], ids=["train", "deploy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_network_comes_back_as_it_was(tmp_path: Path, folded: bool, dtype: torch.dtype) -> None:
    made = network()
    if folded:
        made.fuse()
    made.to(dtype)
    save(made, tmp_path / "a.safetensors", {"epoch": 3, "best": [0.5, None]})
    read = load_model(tmp_path / "a.safetensors")
    assert read.description == made.description
    assert read.deployed == folded
    assert not read.training
    mine, theirs = made.state_dict(), read.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) and mine[key].dtype == theirs[key].dtype for key in mine)
    assert load_extra(tmp_path / "a.safetensors") == {"epoch": 3, "best": [0.5, None]}


def test_metadata_are_json(tmp_path: Path) -> None:
    save(network(), tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as stored:
        about = stored.metadata()
    assert about["form"] == "train"
    assert json.loads(about["stride"]) == [8, 16, 32]
    assert json.loads(about["description"])["names"] == ["ä", 'b "c"']


def test_saving_does_not_touch_the_network(tmp_path: Path) -> None:
    made = network().train()
    before = {key: value.clone() for key, value in made.state_dict().items()}
    save(made, tmp_path / "a.safetensors")
    assert made.training
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(
        InputError, match="not a detector of ours; for an original YOLOv5 checkpoint: unbranch import"
    ):
        load_model(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no such file"):
        load_model(tmp_path / "absent.safetensors")
    for name, hint in (("a.onnx", "of ours are read here"), ("a.pt", "import it first: unbranch import")):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match=f"weights of an unknown kind; .*{hint}"):
            load_model(tmp_path / name)
    save(network(), tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-100])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_model(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", "99", "written by another version of this format, 99"),
        ("description", '{"network": "yolov9"}', "do not fit its description: network: 'yolov9'"),
        ("description", '{"network": "yolov5n"}', "do not fit its description"),
        ("description", "{", "its metadata are damaged"),
    ],
)
def test_metadata_that_were_changed(tmp_path: Path, key: str, value: str, message: str) -> None:
    save(network(), tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as stored:
        about = stored.metadata() | {key: value}
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "a.safetensors", about)
    with pytest.raises(InputError, match=message) as caught:
        load_model(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


FULL_DISK = """
import resource, signal, sys
import torch
from unbranch.detect import InputError, save
from unbranch.models import create
from unbranch.models.yolov5 import yolov5

network = yolov5("yolov5n")
save(network, sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    save(network, sys.argv[1])
except InputError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.safetensors"
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(target)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert run.stdout.startswith(f"{target}: cannot be written: ")
    assert run.stdout.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert load_model(target).names[0] == "class0"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        save(network(), tmp_path / "file" / "a.safetensors")


def test_a_classifiers_weights_fill_the_backbone(tmp_path: Path) -> None:
    classifier = create("repvgg_a0", num_classes=7)
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    made = yolov5("yolov5n", num_classes=2, backbone="repvgg_a0")
    result = load_backbone(made, tmp_path / "classifier.safetensors")
    theirs = classifier.state_dict()
    filled = {key: value for key, value in made.state_dict().items() if key.startswith("backbone.network.")}
    assert len(result.loaded) == len(filled) == len(theirs) - 2
    assert all(
        torch.equal(value, theirs[key.removeprefix("backbone.network.")]) for key, value in filled.items()
    )
    with pytest.raises(InputError, match="the backbone is the detector's own"):
        load_backbone(network(), tmp_path / "classifier.safetensors")


@pytest.mark.parametrize("folded", [False, True], ids=["train", "deploy"])
def test_other_families_come_back_as_they_were(tmp_path: Path, folded: bool) -> None:
    made = yolov7("yolov7-w6", width=0.125, names=["a", "b"], block={"out1": "repconv"}).eval()
    randomize(made, torch.Generator().manual_seed(2), torch.rand(1, 3, 64, 64))
    if folded:
        made.fuse()
    save(made, tmp_path / "a.safetensors")
    read = load_model(tmp_path / "a.safetensors")
    assert isinstance(read, YOLOv7)
    assert read.description == made.description
    assert read.deployed == folded
    mine, theirs = made.state_dict(), read.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
