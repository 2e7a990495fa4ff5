"""Small networks, each with one thing in it that a fold of an exported program can get wrong."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Net(nn.Module):
    """A convolution with its norm, and a forward given as a function of the network and its input."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module | Tensor) -> None:
        super().__init__()
        self.run = run
        self.conv, self.norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        for name, layer in layers.items():
            if isinstance(layer, nn.Module):
                self.add_module(name, layer)
            else:
                self.register_buffer(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def alias_read_after_write(net: Net, x: Tensor) -> Tensor:
    """The in-place ops are linear, but another view of their memory is read afterwards."""
    y = net.norm(net.conv(x)).relu()
    part = y[:, :2]
    y.mul_(2).add_(1)
    return part + y[:, 2:4]


def base_read_after_view_is_written(net: Net, x: Tensor) -> Tensor:
    """A view is scaled in place, the whole is read."""
    y = net.norm(net.conv(x))
    y[:, 1:3].mul_(3)
    return net.point(y)


def source_overwritten(net: Net, x: Tensor) -> Tensor:
    """The convolution must be computed before its source is overwritten, although its norm comes later."""
    t = x.sigmoid()
    c = net.conv(t)
    t.sin_()
    return net.norm(c) + t[:, :1]


def chunk_written(net: Net, x: Tensor) -> Tensor:
    """One half is changed in place, the other half read."""
    y = net.norm(net.conv(x))
    a, b = y[:, :3], y[:, 3:]
    a.add_(b).mul_(2)
    return torch.cat([b, a], 1)


def written_by_old_name(net: Net, x: Tensor) -> tuple[Tensor, ...]:
    """The value is read before it is changed in place, and afterwards by the name that it had."""
    y = net.conv(x)
    z = y.relu()
    y.mul_(net.scale)
    y.add_(0.5)
    return net.point(y), y, z


def slab_of_values(net: Net, x: Tensor) -> Tensor:
    """What is written into the border depends on the input."""
    y = F.pad(net.conv(x), (1, 1, 1, 1))
    y[:, :, 0:1, :] = y[:, :, 1:2, :]
    return net.wide(y)


def constant_written(net: Net, x: Tensor) -> Tensor:
    """A constant is made by writing."""
    mask = torch.zeros(6, 1, 1)
    mask[2:4] = 2.0
    return net.norm(net.conv(x)) * mask


def buffer_counts(net: Net, x: Tensor) -> Tensor:
    """A buffer that changes from call to call is no constant."""
    net.count.add_(1)
    return net.norm(net.conv(x)) + net.count


def input_written(net: Net, x: Tensor) -> Tensor:
    """The caller sees what is written into its tensor."""
    x.mul_(0.5)
    return net.norm(net.conv(x))


def lifted(net: Net, x: Tensor) -> Tensor:
    """A tensor made in the forward."""
    return net.norm(net.conv(x)) * torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0, -2.0]).view(6, 1, 1)


def drawn(net: Net, x: Tensor) -> Tensor:
    """A random tensor is no constant; multiplied by zero it does not show."""
    return net.norm(net.conv(x)) + 0.0 * torch.rand(6, 1, 1)


def branch(net: Net, x: Tensor) -> Tensor:
    """A conditional with graphs of its own, around folded places."""
    y = net.norm(net.conv(x))
    (z,) = torch.cond(y.mean() > 0, lambda t: (t.sin(),), lambda t: (t.cos(),), (y,))
    return net.point(z) * 2


def no_grad(net: Net, x: Tensor) -> Tensor:
    """Part of the forward runs in a graph of its own."""
    y = net.norm(net.conv(x))
    with torch.no_grad():
        z = y * 2 + 1
    return y + z


def inner_size(net: Net, x: Tensor) -> Tensor:
    """A size is asked of a value that will not be there any more."""
    y = net.layer(x)
    h, w = y.shape[2:]
    return net.norm(y).reshape(-1, 6, h * w).relu()


def tokens(net: Net, x: Tensor) -> Tensor:
    """Channels move to the end, are scaled there, and stay there."""
    y = net.norm(net.conv(x)).flatten(2).transpose(1, 2)
    return (y * net.scale + net.shift).relu()


def square_view(net: Net, x: Tensor) -> Tensor:
    """For the example's size this view and its way back look like no change at all."""
    n, c, h, w = x.shape
    return net.norm(net.conv(x.reshape(n, h, c, w).transpose(1, 2)))


def crop(net: Net, x: Tensor) -> Tensor:
    """A crop whose end is computed from the size."""
    h = x.shape[2]
    return net.norm(net.conv(F.pad(x, (0, 0, 1, 1))[:, :, 1 : h + 1]))


def same_output_twice(net: Net, x: Tensor) -> dict[str, Any]:
    y = net.norm(net.conv(x))
    return {"first": y, "rest": [y, x, net.fixed * 2]}


def twice(net: Net, x: Tensor) -> Tensor:
    """One convolution with two norms."""
    return net.norm(net.conv(x)) + net.other(net.conv(x.flip(0)))


def row(net: Net, x: Tensor) -> Tensor:
    """Linear layers and norms over vectors and over tokens."""
    y = net.norm1(net.line(x.mean((2, 3))))
    z = net.norm2(net.line(x.movedim(1, -1).flatten(1, 2)).transpose(1, 2))
    return z.relu() + y.relu().unsqueeze(-1)


def conv2d(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 6, **{"kernel_size": 3, "padding": 1} | options)


def plain(net: Net, x: Tensor) -> Tensor:
    """The convolution given, then the norm."""
    return net.norm(net.layer(x))


def padded(net: Net, x: Tensor) -> Tensor:
    """One-sided padding before an unpadded convolution."""
    return net.norm(net.layer(F.pad(x, (1, 0, 2, 0))))


def cropping_pads(net: Net, x: Tensor) -> Tensor:
    """Two pads that crop and fill become one."""
    return net.norm(net.conv(F.pad(F.pad(x, (0, 1, -1, 1)), (-1, 0, 1, 1))) * 2)


def uneven(net: Net, x: Tensor) -> Tensor:
    """Two branches, each padded at one side of another axis: one convolution with a pad of its own before it."""
    return net.flat(F.pad(x, (1, 0, 0, 0))) + net.tall(F.pad(x, (0, 0, 2, 0)))


def memory_order(net: Net, x: Tensor) -> Tensor:
    """Channels lie innermost in memory, and a view further on needs them there."""
    y = net.line(x.movedim(1, -1)).movedim(-1, 1)
    return (y * net.scale).relu().movedim(1, -1).view(-1, 4)


# name: the network, how many places fold, and whether batch and sizes may be dynamic
NETS: dict[str, tuple[Callable[[], nn.Module], int, bool]] = {
    "alias read after write": (lambda: Net(alias_read_after_write), 1, True),
    "base read after a view is written": (
        lambda: Net(base_read_after_view_is_written, point=nn.Conv2d(6, 4, 1)),
        1,
        True,
    ),
    "source overwritten": (lambda: Net(source_overwritten), 1, True),
    "chunk written": (lambda: Net(chunk_written), 1, True),
    "written by its old name": (
        lambda: Net(
            written_by_old_name, point=nn.Conv2d(6, 4, 1), scale=torch.linspace(1, 2, 6).view(6, 1, 1)
        ),
        1,
        True,
    ),
    "slab of values": (lambda: Net(slab_of_values, wide=nn.Conv2d(6, 4, 3)), 0, True),
    "constant written": (lambda: Net(constant_written), 1, True),
    "buffer counts": (lambda: Net(buffer_counts, count=torch.zeros(())), 1, True),
    "input written": (lambda: Net(input_written), 1, True),
    "lifted": (lambda: Net(lifted), 1, True),
    "drawn": (lambda: Net(drawn), 1, True),
    "branch": (lambda: Net(branch, point=nn.Conv2d(6, 4, 1)), 2, True),
    "no grad": (lambda: Net(no_grad), 1, True),
    "inner size": (lambda: Net(inner_size, layer=conv2d(stride=2)), 1, True),
    "tokens": (lambda: Net(tokens, scale=torch.linspace(-1, 2, 6), shift=torch.ones(6)), 1, True),
    "square view": (lambda: Net(square_view), 1, True),
    "crop": (lambda: Net(crop), 1, True),
    "same output twice": (lambda: Net(same_output_twice, fixed=torch.ones(3)), 1, True),
    "twice": (lambda: Net(twice, other=nn.BatchNorm2d(6)), 2, True),
    "row": (
        lambda: Net(row, line=nn.Linear(4, 6), norm1=nn.BatchNorm1d(6), norm2=nn.BatchNorm1d(6)),
        2,
        True,
    ),
    "weight norm": (lambda: Net(plain, layer=parametrizations.weight_norm(conv2d())), 1, True),
    "spectral norm": (lambda: Net(plain, layer=parametrizations.spectral_norm(conv2d())), 1, True),
    "reflect": (lambda: Net(plain, layer=conv2d(padding_mode="reflect")), 1, True),
    "replicate": (lambda: Net(plain, layer=conv2d(padding_mode="replicate", stride=2)), 1, True),
    "circular": (lambda: Net(plain, layer=conv2d(padding_mode="circular")), 1, False),
    "same": (lambda: Net(plain, layer=conv2d(padding="same", kernel_size=(2, 4), dilation=2)), 1, True),
    "one-sided": (lambda: Net(padded, layer=conv2d(padding=0, bias=False)), 1, True),
    "cropping pads": (lambda: Net(cropping_pads), 1, True),
    "memory order": (
        lambda: Net(memory_order, line=nn.Linear(4, 4), scale=torch.arange(4.0).view(4, 1, 1)),
        1,
        True,
    ),
    "uneven": (lambda: Net(uneven, flat=nn.Conv2d(4, 6, (1, 2)), tall=nn.Conv2d(4, 6, (3, 1))), 1, True),
    "groups": (lambda: Net(plain, layer=conv2d(groups=2, dilation=2, bias=False)), 1, True),
    "transposed": (
        lambda: Net(
            plain, layer=nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        ),
        1,
        True,
    ),
}
