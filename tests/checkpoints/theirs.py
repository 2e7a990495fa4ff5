"""RepVGG's and MobileOne's networks under their authors' names: an oracle written for these tests."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(c_out)))


class Squeeze(nn.Module):
    def __init__(self, channels: int, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Conv2d(channels, channels // 16, 1))
        self.add_module(names[1], nn.Conv2d(channels // 16, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.get_submodule(name) for name in self.names)
        pooled = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(second(F.relu(first(pooled))))


class TheirRepVGGBlock(nn.Module):
    def __init__(
        self, c_in: int, c_out: int, stride: int, groups: int = 1, se: bool = False, deploy: bool = False
    ):
        super().__init__()
        self.se = Squeeze(c_out, ("down", "up")) if se else nn.Identity()
        self.deploy = deploy
        if deploy:
            self.rbr_reparam = nn.Conv2d(c_in, c_out, 3, stride, 1, groups=groups)
            return
        self.rbr_identity = nn.BatchNorm2d(c_in) if c_in == c_out and stride == 1 else None
        self.rbr_dense = conv_bn(c_in, c_out, 3, stride, groups)
        self.rbr_1x1 = conv_bn(c_in, c_out, 1, stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.deploy:
            return F.relu(self.se(self.rbr_reparam(x)))
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        if self.rbr_identity is not None:
            y = y + self.rbr_identity(x)
        return F.relu(self.se(y))


class TheirMobileOneBlock(nn.Module):
    def __init__(self, c_in, c_out, kernel, stride, groups=1, branches=1, se=False, deploy=False):
        super().__init__()
        self.se = Squeeze(c_out, ("reduce", "expand")) if se else nn.Identity()
        self.deploy = deploy
        if deploy:
            self.reparam_conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups)
            return
        self.rbr_skip = nn.BatchNorm2d(c_in) if c_in == c_out and stride == 1 else None
        self.rbr_conv = nn.ModuleList(conv_bn(c_in, c_out, kernel, stride, groups) for _ in range(branches))
        self.rbr_scale = conv_bn(c_in, c_out, 1, stride, groups) if kernel > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.deploy:
            return F.relu(self.se(self.reparam_conv(x)))
        parts = [conv(x) for conv in self.rbr_conv]
        parts += [branch(x) for branch in (self.rbr_scale, self.rbr_skip) if branch is not None]
        return F.relu(self.se(sum(parts[1:], parts[0])))


class TheirNet(nn.Module):
    """Their outer names: stage0, stage1 ..., linear."""

    def __init__(self, *stages: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        for i, stage in enumerate(stages):
            self.add_module(f"stage{i}", stage)
        self.depth = len(stages)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.depth):
            x = self.get_submodule(f"stage{i}")(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def their_repvgg(*, deploy: bool = False, se: bool = True, classes: int = 5) -> TheirNet:
    """``RepVGG((2, 1), (16, 16, 32), groups=2, se=1 / 16, num_classes=5)`` under their names."""

    def block(*shape: int, groups: int = 1) -> nn.Module:
        return TheirRepVGGBlock(*shape, groups=groups, se=se, deploy=deploy)

    stage1 = nn.Sequential(block(16, 16, 2), block(16, 16, 1, groups=2))
    return TheirNet(block(3, 16, 2), stage1, nn.Sequential(block(16, 32, 2)), width=32, classes=classes)


def their_mobileone(*, deploy: bool = False, classes: int = 5) -> TheirNet:
    """``MobileOne((2, 1), (16, 16, 32), num_branches=2, se_depths=(0, 1), num_classes=5)``, their names."""

    def pair(c_in: int, c_out: int, stride: int, se: bool) -> list[nn.Module]:
        return [
            TheirMobileOneBlock(c_in, c_in, 3, stride, c_in, branches=2, se=se, deploy=deploy),
            TheirMobileOneBlock(c_in, c_out, 1, 1, branches=2, se=se, deploy=deploy),
        ]

    stage1 = nn.Sequential(*pair(16, 16, 2, False), *pair(16, 16, 1, False))
    stage2 = nn.Sequential(*pair(16, 32, 2, True))
    return TheirNet(
        TheirMobileOneBlock(3, 16, 3, 2, deploy=deploy), stage1, stage2, width=32, classes=classes
    )
