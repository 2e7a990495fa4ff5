"""Make an expanded network the same function in training mode: give its new norms the statistics of real batches."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.expand.expanded import Expanded
from unbranch.frontends.modules import arguments
from unbranch.ops.batch_norm import restate

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class _Moments:
    """Count, mean and sum of squared deviations per channel, merged batch by batch (Chan et al., 1979)."""

    count: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def see(self, x: Tensor) -> None:
        """One more batch (N, C, *size)."""
        flat = x.detach().double().transpose(0, 1).flatten(1)
        count, mean = flat.shape[1], flat.mean(1)
        gap = mean - self.mean
        total = self.count + count
        self.squares = (
            self.squares + ((flat - mean[:, None]) ** 2).sum(1) + gap**2 * (self.count * count / total)
        )
        self.mean = self.mean + gap * (count / total)
        self.count = total


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Give the norms of expanded layers the mean and variance that they see, and the scale and shift that keep them the same map.

    ``gamma' = s sqrt(var' + eps)``, ``beta' = t + s mean'``: in eval mode nothing changes, and in training mode a batch like these is
    normalised to what eval mode makes of it.

    Args:
        model: With layers from `expand_`; its mode is kept.
        batches: Each one tensor, a sequence of arguments or a mapping, as for `reparameterize`.

    Returns:
        How many norms were calibrated.

    Raises:
        ValueError: no batch, or no expanded layer; the model is unchanged.
    """
    norms = [
        m
        for layer in model.modules()
        if isinstance(layer, Expanded)
        for m in layer.modules()
        if isinstance(m, NORMS)
    ]
    if not norms:
        raise ValueError("the model has no expanded layer to calibrate: call expand_(model) first")
    moments = {id(norm): _Moments() for norm in norms}
    handles = [
        n.register_forward_pre_hook(lambda module, args: moments[id(module)].see(args[0])) for n in norms
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for batch in batches:
            args, kwargs = arguments(batch)
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    if any(seen.count < 2 for seen in moments.values()):
        raise ValueError("calibration needs at least one batch that reaches every expanded layer")
    for norm in norms:
        seen = moments[id(norm)]
        assert isinstance(seen.mean, Tensor)
        assert isinstance(seen.squares, Tensor)
        restate(norm, seen.mean, seen.squares / seen.count)
    return len(norms)
