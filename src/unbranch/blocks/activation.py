"""Activations by name, by factory or as they are."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from torch import nn

Activation: TypeAlias = nn.Module | Callable[[], nn.Module] | str | None

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "relu6": partial(nn.ReLU6, inplace=True),
    "leaky_relu": partial(nn.LeakyReLU, inplace=True),
    "leaky_relu_0.1": partial(nn.LeakyReLU, 0.1, inplace=True),
    "silu": partial(nn.SiLU, inplace=True),
    "hardswish": partial(nn.Hardswish, inplace=True),
    "gelu": nn.GELU,
    "mish": partial(nn.Mish, inplace=True),
    "sigmoid": nn.Sigmoid,
}


def activation_layer(activation: Activation) -> nn.Module:
    """The module meant: ``ACTIVATIONS`` by name, a factory's product, the module itself; identity for None.

    Raises ValueError for a name that is not in the table.

    >>> activation_layer("silu")
    SiLU(inplace=True)
    """
    if activation is None:
        return nn.Identity()
    if isinstance(activation, nn.Module):
        return activation
    if not isinstance(activation, str):
        return activation()
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation={activation!r} is none of {', '.join(ACTIVATIONS)}; a module or a factory will do"
        )
    return ACTIVATIONS[activation]()
