"""Put the convolutions in: edits by reference, so that a module that stands in several places is replaced in all of them."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from unbranch.frontends.modules.emit import chain, emit, emptied, parameters
from unbranch.frontends.modules.frames import Frame
from unbranch.frontends.modules.recorder import Recording
from unbranch.frontends.modules.rewriting import Rewriter
from unbranch.frontends.modules.sites import Site, Step
from unbranch.ops.convolution import Convolution
from unbranch.ops.linear import Linear


def write(root: nn.Module, sites: Sequence[Site], recording: Recording, rewriter: Rewriter) -> nn.Module:
    """Apply the sites, outer modules first. The root is returned, which is another module where it was itself replaced."""
    unique = list({site.signature: site for site in sites}.values())
    unique.sort(key=lambda site: (site.how == "chain", len(list(site.frame.ancestors()))))
    for _, group in groupby(
        unique, key=lambda site: (site.how == "graph" and id(site.frame.module)) or id(site)
    ):
        together = list(group)
        if together[0].how == "graph":
            layers = [(site, _layer(site, recording)) for site in together]
            root = _replace(root, together[0].frame.module, rewriter.rewrite(layers))
        else:
            root = _write_one(root, together[0], recording)
    return root


def _write_one(root: nn.Module, site: Site, recording: Recording) -> nn.Module:
    for position, step in enumerate(site.steps):
        module = step.frame.module
        if position != site.anchor:
            root = _replace(root, module, _around(step, emptied(module)))
        elif site.in_place:
            affine = site.fact.evaluate(recording.graph.device)
            like = module.weight if isinstance(module.weight, Tensor) else None
            dtype = recording.graph.values[site.fact.value].dtype
            module.weight, module.bias = parameters(affine, dtype, like, site.linear)
        else:
            root = _replace(root, module, _around(step, _layer(site, recording)))
    return root


def _layer(site: Site, recording: Recording) -> nn.Module:
    """The convolution of a site."""
    affine = site.fact.evaluate(recording.graph.device)
    dtype = recording.graph.values[site.fact.value].dtype
    return emit(affine, dtype, _weight_like(site, recording), site.linear)


def _weight_like(site: Site, recording: Recording) -> Tensor | None:
    """A weight of the region, for its device and memory format; the largest speaks for all."""
    records = [recording.graph.nodes[node].records[0] for node in site.fact.members]
    weights = [record.weight for record in records if isinstance(record, Convolution | Linear)]
    return max(weights, key=lambda weight: weight.numel(), default=None)


def _around(step: Step, layer: nn.Module) -> nn.Module:
    """The layer between the module's other calls."""
    named = [
        *((_name(call), call.module) for call in step.before),
        ("conv", layer),
        *((_name(call), call.module) for call in step.after),
    ]
    if len(named) > 1 and type(layer) is nn.Identity:
        named = [(name, module) for name, module in named if module is not layer]
    return chain(named)


def _name(frame: Frame) -> str:
    return frame.path.rpartition(".")[2]


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Every reference to ``old`` below ``root`` becomes ``new``, which takes over the attributes that ``new`` lacks."""
    _carry_attributes(old, new)
    if root is old:
        return new
    for parent in list(root.modules()):
        if parent is new:
            continue
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new
    return root


def _carry_attributes(old: nn.Module, new: nn.Module) -> None:
    for name, value in vars(old).items():
        if name.startswith("_") or name in vars(new) or isinstance(value, nn.Module | Tensor):
            continue
        if isinstance(new, nn.Sequential | torch.fx.GraphModule | nn.Identity) or name not in dir(new):
            setattr(new, name, value)
