"""Float32 computed in float32, whatever the process allows: networks are compared by their maths, not by a shorter format's rounding."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.torch_version import TorchVersion

BACKENDS: Any = torch.backends
PER_BACKEND = TorchVersion(torch.__version__) >= "2.9"
"""Whether torch has settings for each op of each backend, beside its older two: of convolutions on GPUs and of matrix products."""


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 and no bfloat16 inside convolutions and matrix products of float32; the process's settings again afterwards.

    On GPUs torch lets convolutions round to TF32 by default. Its settings of both generations are changed alike: where they differ, torch
    raises for whoever asks for the older ones, as code that is run meanwhile may.

    Example:
        >>> with full_precision():
        ...     torch.backends.cudnn.allow_tf32
        False
    """
    parts = _parts()
    before, older = [part.fp32_precision for part in parts], _older()
    try:
        _set_older(False, "highest")
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        _set_older(*older)
        for part, own in zip(parts, before, strict=True):
            part.fp32_precision = own


def _parts() -> list[Any]:
    if not PER_BACKEND:
        return []
    cuda, cudnn, cpu = BACKENDS.cuda, BACKENDS.cudnn, BACKENDS.mkldnn
    return [cuda.matmul, cudnn.conv, cudnn.rnn, cpu.matmul, cpu.conv, cpu.rnn]


def _older() -> tuple[bool, str]:
    """Whether convolutions on GPUs may be in TF32, and the precision of products; from the newer settings, which never raise."""
    if not PER_BACKEND:
        return BACKENDS.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    products = "high" if BACKENDS.cuda.matmul.fp32_precision == "tf32" else "highest"
    products = "medium" if BACKENDS.mkldnn.matmul.fp32_precision == "bf16" else products
    return BACKENDS.cudnn.conv.fp32_precision == "tf32", products


def _set_older(convolutions: bool, products: str) -> None:
    BACKENDS.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)
