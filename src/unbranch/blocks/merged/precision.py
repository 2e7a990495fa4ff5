"""Products of float32 matrices in float32, whatever the process allows elsewhere: moments lose more digits than anything else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from unbranch.fold.precision import exact_products


@contextmanager
def exact_moments(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32 and no bfloat16 inside matrix products on this device; the process's setting again afterwards."""
    if torch.is_autocast_enabled(device.type):  # in backward only: forward keeps the branches there
        with torch.autocast(device.type, enabled=False), exact_products(device):
            yield
        return
    with exact_products(device):
        yield
