"""Every kind of layer and op that folds: ranks, paddings, transposed layers, tokens, shuffles, sums in place."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontends.modules.checks import (
    SMALL,
    conv_norm,
    convolutions,
    fold,
    norms_left,
    x_of,
)
from unbranch.frontends.modules import record


def test_sums_in_place() -> None:
    class InPlace(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.conv, self.side, self.kind = conv_norm(), conv_norm(4, 4, 1), kind

        def forward(self, x: Tensor) -> Tensor:
            if self.kind == "into the source":
                x = x.clone()
                x += self.conv(x)
                return F.relu(x)
            if self.kind == "into a branch":
                y = self.conv(x)
                y += self.side(x)
                y += x
                return F.relu(y)
            if self.kind == "read later":
                y = self.conv(x)
                z = y
                y += self.side(x)
                return F.relu(z) + z.mean()
            y = self.conv(x)
            view = y[:, :2]
            y += self.side(x)
            return F.relu(y) + view.mean()

    for kind, left in (
        ("into the source", 2),
        ("into a branch", 1),
        ("read later", 1),
        ("through a view", 2),
    ):
        folded, report = fold(nn.Sequential(InPlace(kind)))
        assert report.changed
        assert convolutions(folded) == left, f"{kind}: {report}"


def test_functional_ops_of_a_users_module_fold() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))
            self.scale = nn.Parameter(torch.randn(6, 1, 1))
            self.register_buffer("mean", torch.randn(6))
            self.register_buffer("var", torch.rand(6) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(x, self.weight, padding=1) * self.scale
            y = F.batch_norm(y, self.get_buffer("mean"), self.get_buffer("var"), eps=1e-3)
            return F.leaky_relu(y - 0.5)

    folded, report = fold(nn.Sequential(Functional()))
    assert report.changed
    assert convolutions(folded) == 1


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_rank_and_transposed_layers(rank: int, transposed: bool) -> None:
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    turned = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    layer: nn.Module = (
        turned(4, 6, 3, 2, 1, output_padding=1, groups=2) if transposed else plain(4, 6, 3, 2, 1, groups=2)
    )
    model = nn.Sequential(layer, norm(6), nn.ReLU())
    folded, report = fold(model, (1, 4, *[7, 8, 5][:rank]), (2, 4, *[9, 5, 6][:rank]))
    assert report.changed
    assert norms_left(folded) == 0


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_padding_modes(mode: str, kernel: int) -> None:
    layer = nn.Conv2d(4, 4, kernel, padding=1, padding_mode=mode)
    folded, report = fold(nn.Sequential(layer, nn.BatchNorm2d(4), nn.ReLU()))
    assert report.changed
    assert norms_left(folded) == 0


def test_linear_and_norm_over_tokens() -> None:
    class Tokens(nn.Module):
        """LeViT's way: a linear layer and a norm over the last axis of (batch, tokens, channels)."""

        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            return self.norm(x.flatten(0, 1)).reshape_as(x)

    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = Tokens(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.gelu(self.tokens(x.flatten(2).transpose(1, 2))))

    folded, report = fold(Flattened())
    assert report.changed
    assert norms_left(folded) == 0


def test_a_channel_shuffle_between_layers() -> None:
    class Shuffled(nn.Module):
        def __init__(self, own: bool) -> None:
            super().__init__()
            self.a, self.b, self.own = nn.Conv2d(6, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6), own

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if self.own:
                n, c, h, w = y.shape
                y = y.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
            else:
                y = F.channel_shuffle(y, 3)
            return F.relu(self.b(y))

    for own in (True, False):
        fold(nn.Sequential(Shuffled(own)), (1, 6, 9, 9), (3, 6, 7, 8))


@pytest.mark.parametrize("neutral", ["sum", "sum in place", "product"])
def test_sums_with_zero_and_products_with_one_go_with_the_layer_before_them(neutral: str) -> None:
    """timm's blocks add 0 where a branch is absent; left behind, it is an op that runs and keeps the block from being replaced."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList([conv_norm(4, 6, 3, stride=2), conv_norm(4, 6, 1, stride=2)])

        def forward(self, x: Tensor) -> Tensor:
            total = 0 + self.branches[0](x)
            total += self.branches[1](x)
            if neutral == "sum in place":
                total += 0
                return total
            return total + 0 if neutral == "sum" else total * 1

    folded, report = fold(nn.Sequential(Block(), nn.ReLU()))
    assert [type(layer) for layer in folded] == [nn.Conv2d, nn.ReLU]
    assert report.after.ops == len(record(folded, (x_of(*SMALL),)).graph.nodes) == 2
