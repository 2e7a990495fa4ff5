"""Products of float32 matrices in float32, whatever the process allows elsewhere: moments lose more digits than anything else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from unbranch.fold.precision import BACKENDS, PER_BACKEND


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32 and no bfloat16 inside matrix products on this device; the process's setting again afterwards."""
    if torch.is_autocast_enabled(device.type):  # in backward only: forward keeps the branches there
        with torch.autocast(device.type, enabled=False), full_precision(device):
            yield
        return
    if not PER_BACKEND:
        allowed = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(allowed)
        return
    backend = BACKENDS.cuda.matmul if device.type == "cuda" else BACKENDS.mkldnn.matmul
    allowed = backend.fp32_precision
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = allowed
