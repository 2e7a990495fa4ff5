"""The training form of a published super-resolution network: blocks whose borders are filled, slab by slab, with a bias."""

from pathlib import Path
from typing import cast

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = (*(f"body.{i}.token_mixer" for i in range(8)), "tail.0")


def _bordered(y: Tensor, bias: Tensor) -> Tensor:
    """One ring of ``bias`` around ``y``."""
    y = F.pad(y, (1, 1, 1, 1))
    ring = bias.view(1, -1, 1, 1)
    y[:, :, 0:1, :] = ring
    y[:, :, -1:, :] = ring
    y[:, :, :, 0:1] = ring
    y[:, :, :, -1:] = ring
    return y


class Mixer(nn.Module):
    """``x + conv1x1(x) + conv3x3(x)`` + two branches: widen, border, unpadded 3x3, narrow."""

    def __init__(self, channels: int = 16, wide: int = 32) -> None:
        super().__init__()
        self.expand_conv, self.expand1_conv = nn.Conv2d(channels, wide, 1), nn.Conv2d(channels, wide, 1)
        self.fea_conv, self.fea1_conv = nn.Conv2d(wide, wide, 3), nn.Conv2d(wide, wide, 3)
        self.reduce_conv, self.reduce1_conv = nn.Conv2d(wide, channels, 1), nn.Conv2d(wide, channels, 1)
        self.res_conv1x1 = nn.Conv2d(channels, channels, 1)
        self.res_conv3x3 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = _bordered(self.expand_conv(x), cast(Tensor, self.expand_conv.bias))
        second = _bordered(self.expand1_conv(x), cast(Tensor, self.expand1_conv.bias))
        branches = self.reduce_conv(self.fea_conv(first)) + self.reduce1_conv(self.fea1_conv(second))
        return branches + self.res_conv1x1(x) + self.res_conv3x3(x) + x


class Mixers(nn.Module):
    """The nine of the network, one after the other, an activation after each."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.Sequential(*(nn.Sequential(Mixer(), nn.GELU()) for _ in BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        return self.mixers(x)


def load_mixers(folder: Path) -> tuple[Mixers, list[tuple[Tensor, Tensor]]]:
    """The trained mixers, and the (weight, bias) that their authors collapsed each of them to."""
    trained = load_file(folder / "rvsr" / "rvsr_train_form.safetensors")
    collapsed = load_file(folder / "rvsr" / "rvsr_collapsed_form.safetensors")
    network = Mixers().eval()
    for name, stage in zip(BLOCKS, network.mixers, strict=True):
        mixer = cast(nn.Sequential, stage)[0]
        mixer.load_state_dict({key: trained[f"{name}.{key}"] for key in mixer.state_dict()})
    pairs = [(collapsed[f"{n}.rep_conv.weight"], collapsed[f"{n}.rep_conv.bias"]) for n in BLOCKS]
    return network, pairs
