"""Layers that compute their own padding and the like, and so do something else at every size: may their weights be rewritten?

Folding what follows such a layer into its weight and bias is exact as long as the layer's result is ``op(f(x), weight) + bias`` whatever
``f`` and the size are. That is looked up at several sizes, on torch's meta device, where nothing is computed.
"""

import copy

import torch
from torch import nn

from unbranch.frontends.modules.recorder import record
from unbranch.frontends.modules.recording import Recording
from unbranch.frontends.modules.trees import tensors_of
from unbranch.ops.convolution import Convolution
from unbranch.ops.linear import Linear

REFUSALS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)
"""What a forward may raise for a size that it does not take, or on the meta device."""


def ends_in_own_layer(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """At every size tried, the last op of the module's forward is the one that uses its weight, and it adds its bias where it has one.

    ``shape`` is that of an input that it takes. Sizes that the module refuses prove nothing; one at least must run.
    """
    probe = copy.deepcopy(module).to("meta")
    weight = probe._parameters["weight"]
    assert weight is not None
    if probe._parameters.get("bias") is None:
        probe.register_parameter("bias", nn.Parameter(weight.new_empty(_rows(module, weight))))
    verdicts = []
    for size in _sizes(shape[2:]):
        try:
            run = record(probe, (torch.empty((*shape[:2], *size), dtype=weight.dtype, device="meta"),))
        except REFUSALS:
            continue
        verdicts.append(_ends_in_own_op(run, probe))
    return bool(verdicts) and all(verdicts)


def _rows(module: nn.Module, weight: torch.Tensor) -> int:
    """How many output channels a layer with this weight has."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return weight.shape[1] * module.groups
    return weight.shape[0]


def _sizes(size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The size that was seen, its neighbours, and others far below and above."""
    nearby = [tuple(max(1, n + step) for n in size) for step in (0, 1, 2, 3, -1)]
    small = [tuple(n + i for i, _ in enumerate(size)) for n in (1, 3, 4, 7, 12)]
    large = [tuple(n * factor + i for i, n in enumerate(size)) for factor in (2, 5, 16)]
    return list(dict.fromkeys(nearby + small + large))


def _ends_in_own_op(run: Recording, module: nn.Module) -> bool:
    """The run's one result is what one op made of the module's own weight and bias, which nothing else reads."""
    node = run.graph.producers.get(run.root.outputs[0]) if len(run.root.outputs) == 1 else None
    if node is None or not isinstance(node.records[0], Convolution | Linear):
        return False
    own = module._parameters["weight"], module._parameters["bias"]
    elsewhere = [
        tensor for other in run.graph.nodes if other is not node for tensor in tensors_of(other.args)
    ]
    return (
        node.records[0].weight is own[0]
        and node.records[0].bias is own[1]
        and not any(tensor is mine for tensor in elsewhere for mine in own)
    )
