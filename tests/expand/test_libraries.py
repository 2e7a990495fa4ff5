"""Other libraries' networks with branches: through their training loops, averages, checkpoints and fusing, and through DDP."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import unbranch
from tests.detect.data_sets import squares
from tests.support import fold_error, randomize
from unbranch.expand import Expanded, calibrate, expand, expand_, parameter_groups

pytestmark = pytest.mark.slow


def timm_network() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model("resnet10t", num_classes=7)


def torchvision_network() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    return models.resnet18(num_classes=7)


def timm_average(model: nn.Module) -> tuple[nn.Module, Callable[[nn.Module], Any]]:
    average = pytest.importorskip("timm.utils").ModelEmaV2(model, decay=0.5)
    return average.module, average.update


def torch_average(model: nn.Module) -> tuple[nn.Module, Callable[[nn.Module], Any]]:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    return average.module, average.update_parameters


def layers(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, Expanded)]


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=generator)


@pytest.mark.parametrize("average", [timm_average, torch_average])
@pytest.mark.parametrize("network", [timm_network, torchvision_network])
def test_classifiers(
    network: Callable[[], nn.Module],
    average: Callable[[nn.Module], tuple[nn.Module, Callable[[nn.Module], Any]]],
    x: Tensor,
    generator: torch.Generator,
    tmp_path: Path,
) -> None:
    plain = randomize(network(), generator, x).eval()
    wide = expand(plain, "repvgg", x, where="layer[34]*")
    calibrate(wide, [x])
    assert len(layers(wide)) >= 4
    assert fold_error(wide(x), plain(x)) <= 1e-4
    kept, update = average(wide)
    optimizer = torch.optim.SGD(parameter_groups(wide, 1e-3, 1e-2), momentum=0.9)
    for _ in range(3):
        wide.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(wide(x), torch.arange(4)).backward()
        optimizer.step()
        update(wide)
    kept.eval()
    assert fold_error(kept(x), plain(x)) > 1e-3
    torch.save({"state_dict": {}, "state_dict_ema": kept.state_dict()}, tmp_path / "last.pth.tar")
    again = network().eval()
    result = unbranch.load(again, tmp_path / "last.pth.tar", example_inputs=x)
    assert list(result.expanded) == layers(wide)
    assert fold_error(again(x), kept(x)) == 0
    folded = unbranch.reparameterize(kept, x)
    assert not layers(folded)
    assert fold_error(folded(x), kept(x)) <= 1e-4


def test_ultralytics_trains_averages_keeps_and_fuses(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionTrainer

    data = squares(tmp_path / "data", train=8, val=4)

    class Trainer(DetectionTrainer):
        def get_model(self, *args: Any, **kwargs: Any) -> nn.Module:
            network = super().get_model(*args, **kwargs).eval()
            expand_(network, "repvgg", torch.zeros(1, 3, 64, 64), where="model.[2468].m.*")
            return network.train()

    overrides = dict[str, Any](
        model="yolov8n.yaml", data=str(data), epochs=2, imgsz=64, batch=4, device="cpu", workers=0, plots=False,
        project=str(tmp_path / "runs"), name="a", verbose=False, pretrained=False, amp=False, val=True,
    )  # fmt: skip
    trainer = Trainer(overrides=overrides)
    trainer.train()
    names = layers(trainer.ema.ema)
    assert len(names) >= 8
    kept = YOLO(str(tmp_path / "runs" / "a" / "weights" / "last.pt")).model
    assert isinstance(kept, nn.Module)
    assert layers(kept) == names
    kept.float().eval()
    x = torch.rand(1, 3, 64, 64)
    expected = kept(x)[0]
    fused = copy.deepcopy(kept).fuse(verbose=False)
    assert fold_error(fused(x)[0], expected) <= 1e-4
    assert fold_error(unbranch.reparameterize(kept, x)(x)[0], expected) <= 1e-4
    again = YOLO(str(tmp_path / "runs" / "a" / "weights" / "last.pt"))
    assert again.predict(torch.rand(1, 3, 64, 64), verbose=False)


DDP = """
import os, sys
import torch
import torch.distributed as dist
from torch import nn
from unbranch.expand import expand_

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
torch.manual_seed(rank)
expand_(net, "dbb", torch.zeros(1, 3, 9, 9))
parallel = nn.parallel.DistributedDataParallel(net.train())
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
for step in range(3):
    optimizer.zero_grad()
    parallel(torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(7 * step + rank))).square().mean().backward()
    optimizer.step()
if rank == 0:
    torch.save(parallel.state_dict(), sys.argv[3])
flat = torch.cat([p.detach().flatten() for p in parallel.parameters()])
both = [torch.zeros_like(flat) for _ in range(2)]
dist.all_gather(both, flat)
assert torch.equal(*both), "the ranks drifted apart"
dist.destroy_process_group()
"""


def test_two_processes_stay_alike(tmp_path: Path, generator: torch.Generator) -> None:
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", DDP, str(rank), str(tmp_path / "meet"), str(tmp_path / "a.pth")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-2000:]
    layers = (
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1),
    )
    net = nn.Sequential(*layers).eval()
    x = torch.randn(2, 3, 9, 9, generator=generator)
    assert unbranch.load(net, tmp_path / "a.pth", example_inputs=x).expanded == ("0", "3")
    assert fold_error(unbranch.reparameterize(net, x)(x), net(x)) <= 1e-5
