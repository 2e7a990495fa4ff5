"""Checkpoints in the original's form, of any size, class count and number of levels; and what is refused."""

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support import fold_error, randomize
from unbranch.detect.errors import InputError
from unbranch.detect.originals import import_original
from unbranch.models.yolov5 import YOLOv5, yolov5

NAMES = ("Conv", "Bottleneck", "C3", "SPPF", "Concat", "Detect", "Model")


@pytest.fixture
def classes() -> Iterator[dict[str, type[nn.Module]]]:
    """Classes that live in modules `models.common` and `models.yolo`, which are gone when the file is
    read.
    """
    made: dict[str, type[nn.Module]] = {}
    sys.modules["models"] = types.ModuleType("models")
    for module, names in (("models.common", NAMES[:5]), ("models.yolo", NAMES[5:])):
        sys.modules[module] = types.ModuleType(module)
        for name in names:
            made[name] = type(name, (nn.Module,), {"__module__": module})
            setattr(sys.modules[module], name, made[name])
    yield made
    forget()


def forget() -> None:
    for module in ("models", "models.common", "models.yolo"):
        sys.modules.pop(module, None)


def note(module: nn.Module, **attributes: object) -> None:
    """Plain attributes, whatever nn.Module thinks of their types: they are pickled with the rest of its dict."""
    module.__dict__.update(attributes)


class Maker:
    """Our network, laid out and named as the original lays it out; written by hand, not by the reader's own
    table.
    """

    def __init__(self, classes: dict[str, type[nn.Module]], network: YOLOv5) -> None:
        self.classes = classes
        self.network = network
        self.layers: list[nn.Module] = []

    def holder(self, name: str, **children: nn.Module | None) -> nn.Module:
        made = self.classes[name]()
        for key, child in children.items():
            if child is not None:
                made.add_module(key, child)
        return made

    def conv(self, ours: nn.Module) -> nn.Module:
        dense = ours.get_submodule("branches.dense")
        return self.holder(
            "Conv",
            conv=dense.get_submodule("0"),
            bn=dense.get_submodule("1"),
            act=ours.get_submodule("activation"),
        )

    def c3(self, ours: nn.Module, shortcut: bool) -> nn.Module:
        row = nn.Sequential()
        for bottleneck in ours.get_submodule("bottlenecks").children():
            cv1, cv2 = (self.conv(bottleneck.get_submodule(key)) for key in ("first", "second"))
            made = self.holder("Bottleneck", cv1=cv1, cv2=cv2)
            note(made, add=shortcut)
            row.append(made)
        cv1, cv2, cv3 = (self.conv(ours.get_submodule(key)) for key in ("main", "bypass", "merge"))
        return self.holder("C3", cv1=cv1, cv2=cv2, cv3=cv3, m=row)

    def put(self, layer: nn.Module, source: int | list[int] = -1) -> int:
        note(layer, i=len(self.layers), f=source)
        self.layers.append(layer)
        return len(self.layers) - 1

    def joined(self, source: list[int]) -> None:
        concat = self.classes["Concat"]()
        note(concat, d=1)
        self.put(concat, source)

    def model(self) -> nn.Module:
        backbone, neck = self.network.backbone, self.network.neck
        self.put(self.conv(backbone.get_submodule("stem")))
        stages = []
        for shrink, stage in zip(
            backbone.get_submodule("shrink").children(),
            backbone.get_submodule("stages").children(),
            strict=True,
        ):
            self.put(self.conv(shrink))
            stages.append(self.put(self.c3(stage, shortcut=True)))
        pool = backbone.get_submodule("pool")
        cv1, cv2 = (self.conv(pool.get_submodule(key)) for key in ("reduce", "merge"))
        self.put(self.holder("SPPF", cv1=cv1, cv2=cv2, m=pool.get_submodule("pool")))
        reduced: list[int] = []
        heads: list[int] = []
        for level, (reduce, stage) in enumerate(zip(neck.reduce, neck.downward, strict=True)):
            reduced.append(self.put(self.conv(reduce)))
            self.put(nn.Upsample(scale_factor=2, mode="nearest"))
            self.joined([-1, stages[-2 - level]])
            heads = [self.put(self.c3(stage, shortcut=False))]
        for level, (shrink, stage) in enumerate(zip(neck.shrink, neck.upward, strict=True)):
            self.put(self.conv(shrink))
            self.joined([-1, reduced[-1 - level]])
            heads.append(self.put(self.c3(stage, shortcut=False)))
        head = self.holder("Detect", m=self.network.detect.maps)
        strides = self.network.detect.strides
        head.register_buffer("anchors", self.network.detect.anchors / strides.view(-1, 1, 1))
        self.put(head, heads)
        model = self.holder("Model", model=nn.Sequential(*self.layers))
        note(model, names=list(self.network.names), stride=strides.clone())
        return model


def some_network(name: str = "yolov5n", **options: Any) -> YOLOv5:
    network = yolov5(name, **options)
    randomize(network, torch.Generator().manual_seed(1), torch.rand(1, 3, 64, 64))
    with torch.no_grad():
        anchors = torch.rand(network.detect.anchors.shape) * 50 + 5
        network.set_anchors((anchors * 4).round() / 4)
    return network.eval()


NARROW = {"channels": [8, 8, 16, 24, 32], "depths": [1, 2, 1, 1]}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("yolov5n", {"names": ["cell"]}),
    ("yolov5s", {"num_classes": 5}),
    ("yolov5n6", {"num_classes": 2}),
    ("yolov5n", NARROW | {"num_classes": 7, "neck_depth": 2, "activation": "relu"}),
]


@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[f"{name}-{len(options)}" for name, options in CASES]
)
@pytest.mark.parametrize("key", ["model", "ema"])
def test_a_pickled_network_comes_back(
    tmp_path: Path, classes: dict[str, type[nn.Module]], name: str, options: dict[str, Any], key: str
) -> None:
    network = some_network(name, **options)
    content = {"epoch": 3, "model": None, "ema": None, "optimizer": {"state": {0: torch.ones(2)}}}
    torch.save(content | {key: Maker(classes, network).model()}, tmp_path / "original.pt")
    forget()
    read = import_original(tmp_path / "original.pt")
    assert read.description == network.description
    assert not read.training
    images = torch.rand(1, 3, 64, 128)
    with torch.no_grad():
        assert torch.equal(read(images), network(images))


def test_averaged_weights_are_preferred(tmp_path: Path, classes: dict[str, type[nn.Module]]) -> None:
    network, averaged = some_network(num_classes=1), some_network(num_classes=1)
    with torch.no_grad():
        averaged.detect.maps.get_parameter("0.bias").fill_(7.0)
    content = {"model": Maker(classes, network).model(), "ema": Maker(classes, averaged).model()}
    torch.save(content, tmp_path / "original.pt")
    bias = import_original(tmp_path / "original.pt").detect.maps.get_parameter("0.bias")
    assert bias.detach().unique().tolist() == [7.0]


def as_original_tensors(classes: dict[str, type[nn.Module]], network: YOLOv5) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in Maker(classes, network).model().state_dict().items()}


def test_bare_tensors_suffice(tmp_path: Path, classes: dict[str, type[nn.Module]]) -> None:
    """Names are numbered where the file has none; half precision is widened."""
    network = some_network(num_classes=3)
    state = as_original_tensors(classes, network)
    torch.save({"state_dict": state}, tmp_path / "bare.pt")
    read = import_original(tmp_path / "bare.pt")
    assert read.names == ["class0", "class1", "class2"]
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(read(images), network(images))
    save_file(
        {key: v.half() if v.is_floating_point() else v for key, v in state.items()},
        tmp_path / "bare.safetensors",
    )
    half = import_original(tmp_path / "bare.safetensors")
    assert half.detect.maps.get_parameter("0.bias").dtype == torch.float32


def test_weights_whose_norms_are_folded_already(tmp_path: Path, classes: dict[str, type[nn.Module]]) -> None:
    network = some_network(num_classes=2)
    state = as_original_tensors(classes, network)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = network.maps(images)
    folded = {key: value for key, value in state.items() if ".bn." not in key}
    for key in list(folded):
        if key.endswith(".conv.weight"):
            weight, stem = folded[key], key.removesuffix(".conv.weight")
            norm = nn.BatchNorm2d(len(weight), eps=1e-3).eval()
            norm.load_state_dict({k: state[f"{stem}.bn.{k}"] for k in norm.state_dict()})
            norm.double()
            at_0, at_1 = (norm(torch.full((1, len(weight), 1, 1), x).double()).detach() for x in (0.0, 1.0))
            folded[key] = (weight * (at_1 - at_0).view(-1, 1, 1, 1)).float().contiguous()
            folded[f"{stem}.conv.bias"] = at_0.flatten().float()
    save_file(folded, tmp_path / "folded.safetensors")
    read = import_original(tmp_path / "folded.safetensors")
    assert read.deployed
    with torch.no_grad():
        assert all(fold_error(a, b) < 1e-4 for a, b in zip(read.maps(images), before, strict=True))


def _dilate(model: nn.Module) -> None:
    note(model.get_submodule("model.4.m.0.cv2.conv"), dilation=(2, 2))


def _group(model: nn.Module) -> None:
    note(model.get_submodule("model.5.conv"), padding=(0, 0))


def _eps(model: nn.Module) -> None:
    note(model.get_submodule("model.9.cv1.bn"), eps=1e-5)


def _no_residual(model: nn.Module) -> None:
    note(model.get_submodule("model.2.m.0"), add=False)


def _reroute(model: nn.Module) -> None:
    note(model.get_submodule("model.12"), f=[-1, 4])


def _upsample(model: nn.Module) -> None:
    note(model.get_submodule("model.11"), mode="bilinear")


def _pool(model: nn.Module) -> None:
    note(model.get_submodule("model.9.m"), kernel_size=7)


def _activation(model: nn.Module) -> None:
    model.get_submodule("model.3").act = nn.ReLU()


def _unknown_activation(model: nn.Module) -> None:
    for module in model.modules():
        if type(module).__name__ == "Conv":
            module.act = nn.Softplus()


def _strides(model: nn.Module) -> None:
    note(model, stride=torch.tensor([4.0, 8.0, 16.0]))


def _too_few_names(model: nn.Module) -> None:
    note(model, names=["one"])


def _missing_weight(model: nn.Module) -> None:
    model.get_submodule("model.7.bn").register_parameter("weight", None)


def _extra_weight(model: nn.Module) -> None:
    model.get_submodule("model.7").register_buffer("extra", torch.ones(1))


def _another_release(model: nn.Module) -> None:
    layers = list(model.get_submodule("model").children())
    model.add_module("model", nn.Sequential(*layers[1:]))


def _shared(model: nn.Module) -> None:
    model.get_submodule("model.3").add_module("bn", model.get_submodule("model.1.bn"))


def _circle(model: nn.Module) -> None:
    model.get_submodule("model.3")._modules["self"] = model


REFUSED: list[tuple[Callable[[nn.Module], None], str]] = [
    (_dilate, r"model\.4\.m\.0\.cv2\.conv .*dilation"),
    (_group, r"model\.5\.conv .*padding"),
    (_eps, r"model\.9\.cv1\.bn .*eps 1e-05"),
    (_no_residual, r"model\.2\.m\.0 .*add False"),
    (_reroute, r"model\.12 .*f \[-1, 4\]"),
    (_upsample, r"model\.11 .*mode 'bilinear'"),
    (_pool, r"model\.9\.m .*kernel_size 7"),
    (_activation, "activations ReLU, SiLU"),
    (_unknown_activation, "activations Softplus"),
    (_strides, "strides"),
    (_too_few_names, "num_classes: 2, but 1 names"),
    (_missing_weight, "lacks 1 weights, the first backbone.shrink.3"),
    (_extra_weight, "has no place for 1 weights"),
    (_another_release, "not the layout of YOLOv5 release 6 or 7"),
    (_shared, "two places"),
    (_circle, "two places"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[change.__name__ for change, _ in REFUSED])
def test_what_computes_something_else_is_refused(
    tmp_path: Path, classes: dict[str, type[nn.Module]], change: Callable[[nn.Module], None], message: str
) -> None:
    model = Maker(classes, some_network(num_classes=2)).model()
    change(model)
    torch.save({"model": model}, tmp_path / "original.pt")
    with pytest.raises(InputError, match=message) as caught:
        import_original(tmp_path / "original.pt")
    assert "\n" not in str(caught.value)
    assert "original.pt" in str(caught.value)


@pytest.mark.parametrize(
    "content", [{}, {"model": {}}, [1, 2], {"epoch": 1}, torch.ones(3), {"model": 7}], ids=repr
)
def test_files_without_a_network_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt"):
        import_original(tmp_path / "other.pt")


def test_a_cut_off_file_is_refused(tmp_path: Path, classes: dict[str, type[nn.Module]]) -> None:
    torch.save({"model": Maker(classes, some_network(num_classes=1)).model()}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cut\.pt: not a PyTorch archive"):
        import_original(tmp_path / "cut.pt")
    (tmp_path / "cut.safetensors").write_bytes(content[:100])
    with pytest.raises(InputError, match=r"cut\.safetensors: cannot be read"):
        import_original(tmp_path / "cut.safetensors")
