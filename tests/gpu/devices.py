"""What tests on a GPU share: networks there, and the ways to let float32 be rounded to TF32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support import randomize_norms
from unbranch.models import create
from unbranch.models.yolov5 import yolov5

BACKENDS: Any = torch.backends
SMALL_YOLO = {"channels": [8, 8, 16, 24, 32], "depths": [1, 1, 1, 1], "names": ["a", "b"], "block": "repvgg"}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "repvgg": lambda: create("repvgg_a0", num_classes=10),
    "mobileone": lambda: create("mobileone_s0", num_classes=10),
    "yolov5": lambda: yolov5("yolov5n", **SMALL_YOLO),
    "timm": lambda: pytest.importorskip("timm").create_model("repvit_m0_9", num_classes=10),
}


def network(name: str, generator: torch.Generator, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A network in eval mode, whose rounding errors are far below the limits of a certificate, and pictures, on the GPU."""
    x = torch.randn(2, 3, 64, 96, generator=generator)
    model = NETWORKS[name]().eval()
    randomize_norms(model, generator)
    return model.to("cuda", dtype), x.to("cuda", dtype)


def _older() -> None:
    torch.set_float32_matmul_precision("high")


def _newer() -> None:
    BACKENDS.cuda.matmul.fp32_precision = "tf32"


def _flag() -> None:
    BACKENDS.cuda.matmul.allow_tf32 = True


WAYS: dict[str, Callable[[], None]] = {"high": _older, "flag": _flag, "per op": _newer}


@contextmanager
def tf32(way: str) -> Iterator[None]:
    """Products in TF32, as torch lets convolutions be anyway."""
    WAYS[way]()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def on_gpu(module: nn.Module) -> bool:
    """Every number of it."""
    return {t.device.type for t in (*module.parameters(), *module.buffers())} == {"cuda"}
