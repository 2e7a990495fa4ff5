"""The moving average of the weights, which is what is validated and kept."""

import copy
import math
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Network = TypeVar("Network", bound=nn.Module)


class Average(nn.Module, Generic[Network]):
    """average ← d · average + (1 - d) · weights, with d = decay · (1 - exp(-updates / ramp)).

    Every floating-point entry of the state is averaged, the norms' statistics included; the others are
    copied. The average is a module of its own, in eval mode, that needs no gradients.

    Source: Polyak averaging; the ramp is YOLOv5's.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> Average(layer).update(layer).updates.item()
        1
    """

    network: Network
    updates: Tensor

    def __init__(self, network: Network, decay: float = 0.9999, ramp: float = 2000.0) -> None:
        super().__init__()
        self.decay, self.ramp = decay, ramp
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever its parent does."""
        return super().train(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> Self:
        """Take one step towards the weights of `network`."""
        self.updates += 1
        d = self.decay * (1 - math.exp(-self.updates.item() / self.ramp))
        now = network.state_dict()
        averaged, current = [], []
        for name, value in self.network.state_dict().items():
            if value.dtype.is_floating_point:
                averaged.append(value)
                current.append(now[name])
            else:
                value.copy_(now[name])
        get_ema_multi_avg_fn(d)(averaged, current, self.updates)
        return self
