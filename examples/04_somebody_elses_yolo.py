"""Our block and `reparameterize_` in YOLO code that knows nothing of us: its classes stay, its norms and branches go."""

import torch
from torch import Tensor, nn

import unbranch
from unbranch.blocks import RepVGGBlock


class TheirConv(nn.Module):
    """Somebody's convolution, norm and activation."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, activate."""
        return self.act(self.bn(self.conv(x)))


class TheirBottleneck(nn.Module):
    """Somebody's bottleneck; its 3x3 is ours, which is the whole change to their code."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.cv1 = TheirConv(c, c)
        self.cv2 = RepVGGBlock(c, c, activation="silu")

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        return x + self.cv2(self.cv1(x))


class TheirC3(nn.Module):
    """Somebody's C3."""

    def __init__(self, c1: int, c2: int, n: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = TheirConv(c1, c2 // 2), TheirConv(c1, c2 // 2), TheirConv(c2, c2)
        self.m = nn.Sequential(*(TheirBottleneck(c2 // 2) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """Both paths, joined."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


torch.manual_seed(0)
model = nn.Sequential(TheirConv(3, 16, 3, 2), TheirC3(16, 32, 2), nn.Conv2d(32, 21, 1))
with torch.no_grad():
    for _ in range(10):
        model.train()(torch.rand(4, 3, 64, 64))  # statistics for the norms
model.eval()
images = torch.rand(1, 3, 64, 96)


def count(kind: type[nn.Module]) -> int:
    """Modules of that class."""
    return sum(isinstance(module, kind) for module in model.modules())


with torch.no_grad():
    before = model(images)
    print(f"before: {count(nn.Conv2d)} convolutions, {count(nn.BatchNorm2d)} norms")
    unbranch.reparameterize_(model, images)
    difference = (model(images) - before).abs().max().item()

print(f"after:  {count(nn.Conv2d)} convolutions, largest difference {difference:.1e}")
assert count(TheirC3) == 1
assert count(TheirBottleneck) == 2
assert difference < 1e-4
