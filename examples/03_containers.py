"""A container of one's own: a C3 of bottlenecks of RepVGG blocks, switched to deploy inside a loop over the model."""

import torch
from torch import nn

from unbranch.blocks import Deployable, RepVGGBlock


class Bottleneck(nn.Module):
    """x + block(1x1(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = RepVGGBlock(channels, channels, 1)
        self.block = RepVGGBlock(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what the block makes."""
        return x + self.block(self.reduce(x))


class C3(Deployable, nn.Module):
    """Two paths, one of them through bottlenecks, joined by a 1x1; the mixin gives it switch_to_deploy()."""

    def __init__(self, channels: int, depth: int = 2) -> None:
        super().__init__()
        self.left = RepVGGBlock(channels, channels // 2, 1)
        self.right = RepVGGBlock(channels, channels // 2, 1)
        self.inner = nn.Sequential(*(Bottleneck(channels // 2) for _ in range(depth)))
        self.join = RepVGGBlock(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Join both paths."""
        return self.join(torch.cat((self.inner(self.left(x)), self.right(x)), dim=1))


torch.manual_seed(0)
model = nn.Sequential(RepVGGBlock(3, 32, stride=2), C3(32), RepVGGBlock(32, 64, stride=2), C3(64))
images = torch.randn(4, 3, 64, 64)
with torch.no_grad():
    model.train()(images)
    before = model.eval()(images)
    for module in model.modules():
        if isinstance(module, C3):
            module.switch_to_deploy()
    after = model(images)

norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
print(
    f"largest difference {(after - before).abs().max().item():.1e}; norms left, in the two blocks between: {norms}"
)
assert (after - before).abs().max() < 1e-5
