"""Other people's detectors, folded where they stand: their own code predicts, validates and exports with them as before."""

import copy
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from tests.support import fold_error, norms, randomize_norms
from unbranch import reparameterize, reparameterize_, verify
from unbranch.fold.certificate import tensors_in

SIZES = ((1, 3, 256, 320), (2, 3, 320, 224))


@pytest.fixture(autouse=True)
def _their_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def largest_error(found: Any, expected: Any) -> float:
    ours, theirs = dict(tensors_in(found)), dict(tensors_in(expected))
    assert list(ours) == list(theirs)
    return max(fold_error(ours[key], theirs[key]) for key in theirs)


def yolo(name: str, folder: Path) -> Any:
    """A network from its description: statistics and class biases drawn, so that there is something to detect."""
    (folder / "settings").mkdir(exist_ok=True)
    os.environ["YOLO_CONFIG_DIR"] = str(folder / "settings")
    ultralytics = pytest.importorskip("ultralytics")
    torch.manual_seed(0)
    model = ultralytics.YOLO(f"{name}.yaml", verbose=False)
    network = model.model.eval()
    generator = torch.Generator().manual_seed(0)
    randomize_norms(network, generator, torch.rand(SIZES[0], generator=generator))
    with torch.no_grad():
        for norm in norms(network):
            dict(norm.named_parameters())["weight"].mul_(
                0.6
            )  # so that float32's own rounding stays near 1e-6
        for branch in network.model[-1].cv3:
            branch[-1].bias.uniform_(-5.0, -3.0)
    return model


@torch.no_grad()
def raw(model: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [model.model(torch.rand(size, generator=generator)) for size in SIZES]


def pictures(folder: Path) -> Path:
    """Three pictures of noise with a box each, as ultralytics keeps data sets."""
    cv2 = pytest.importorskip("cv2")
    draw = numpy.random.default_rng(0)
    for part in ("images/val", "labels/val"):
        (folder / part).mkdir(parents=True)
    for number in range(3):
        picture = draw.integers(0, 255, (96, 128, 3), dtype=numpy.uint8)
        cv2.imwrite(str(folder / "images" / "val" / f"{number}.png"), picture)
        (folder / "labels" / "val" / f"{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    names = "\n".join(f"  {i}: c{i}" for i in range(80))
    (folder / "data.yaml").write_text(
        f"path: {folder}\ntrain: images/val\nval: images/val\nnames:\n{names}\n"
    )
    return folder / "data.yaml"


def farthest_pair(ours: Any, theirs: Any) -> float:
    """Boxes paired one to one: the largest distance in pixels, in class and in 1e-3 of confidence. Their order may differ by ties."""
    optimize = pytest.importorskip("scipy.optimize")
    rows = [
        torch.cat([b.xyxy, b.cls[:, None] * 1e3, b.conf[:, None] * 1e3], 1).double() for b in (ours, theirs)
    ]
    gaps = torch.cdist(rows[0], rows[1], p=float("inf")).numpy()
    return float(gaps[optimize.linear_sum_assignment(gaps)].max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov5n", "yolov8n", "yolov9t", "yolo11n"])
def test_ultralytics_own_code_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = yolo(name, tmp_path)
    before = copy.deepcopy(model)
    expected = raw(model)
    kinds = [type(layer) for layer in model.model.model]
    report = reparameterize_(model.model, torch.rand(SIZES[0]))
    assert report.changed
    assert largest_error(raw(model), expected) <= 1e-5
    assert [type(layer) for layer in model.model.model] == kinds
    assert not any(type(m) is nn.BatchNorm2d for m in model.model.modules())

    picture = numpy.random.default_rng(0).integers(0, 255, (256, 320, 3), dtype=numpy.uint8)
    options = {"conf": 0.001, "imgsz": 320, "verbose": False, "save": False}
    ours, theirs = (m.predict(picture, **options)[0].boxes for m in (model, before))
    assert len(ours) >= 50
    assert len(ours) == len(theirs)
    assert farthest_pair(ours, theirs) <= 1e-2

    data = pictures(tmp_path / "data")
    options = {"data": str(data), "imgsz": 96, "batch": 1, "workers": 0, "plots": False, "verbose": False}
    ours, theirs = (m.val(**options).box.map for m in (model, before))
    assert ours == pytest.approx(theirs, abs=1e-6)
    path = model.export(format="onnx", imgsz=96, simplify=False, verbose=False)
    assert Path(path).stat().st_size > 10_000


class FrozenNorm(nn.Module):
    """A norm of nobody's class, computed by hand from buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            self.get_buffer(name).reshape(1, -1, 1, 1)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["torch", "torchvision", "ours"])
def test_faster_rcnn(norm: str, generator: torch.Generator) -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    misc = pytest.importorskip("torchvision.ops.misc")
    layer = {"torch": nn.BatchNorm2d, "torchvision": misc.FrozenBatchNorm2d, "ours": FrozenNorm}[norm]
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=layer
    )
    model = detection.FasterRCNN(backbone, num_classes=5, min_size=96, max_size=160).eval()
    pictures = [[torch.rand(3, 96, 128)], [torch.rand(3, 80, 100), torch.rand(3, 120, 96)]]
    randomize_norms(model.backbone, generator, torch.rand(1, 3, 96, 128))
    model = model.double()
    inputs = [[picture.double() for picture in batch] for batch in pictures]
    folded, report = reparameterize(model, [inputs[0]], return_report=True)
    assert len(report.folded) >= 20
    assert not any(isinstance(m, layer) for m in folded.modules())
    with torch.no_grad():
        for batch in inputs:
            found, expected = folded(batch), model(batch)
            assert [len(f["boxes"]) for f in found] == [len(e["boxes"]) for e in expected]
            assert largest_error(found, expected) <= 1e-8
            features = [m.backbone(batch[0][None]) for m in (folded, model)]
            assert largest_error(*features) <= 1e-10
    assert verify(model.backbone, folded.backbone, torch.rand(1, 3, 96, 128, dtype=torch.float64))
