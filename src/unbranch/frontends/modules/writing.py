"""Put the convolutions in: edits by reference, so that a module that stands in several places is replaced in all of them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor, nn

from unbranch.affine import Affine
from unbranch.frontends.modules.emit import chain, emit, emptied, parameters
from unbranch.frontends.modules.frames import Frame, StandIn
from unbranch.frontends.modules.recording import Recording
from unbranch.frontends.modules.rewriting import Rewriter
from unbranch.frontends.modules.sites import Site, Step
from unbranch.frontends.modules.trees import each_module
from unbranch.ops.convolution import Convolution
from unbranch.ops.linear import Linear

Make: TypeAlias = Callable[[Site, Affine], nn.Module]


def write(root: nn.Module, sites: Sequence[Site], recording: Recording, rewriter: Rewriter) -> nn.Module:
    """Apply the sites, outer modules first. The root is returned: another module where it was itself replaced."""
    unique = list({site.signature: site for site in sites}.values())
    unique.sort(key=lambda site: (len(site.steps) > 1, len(list(site.frame.ancestors())), id(site.frame)))
    writer = Writer(root, recording)
    for _, group in groupby(unique, key=lambda site: id(site.frame) if site.how == "graph" else id(site)):
        together = list(group)
        if together[0].how == "graph":
            layers = [(site, writer.layer(site)) for site in together]
            writer.replace(together[0].frame.module, rewriter.rewrite(layers))
        else:
            writer.write(together[0])
    return writer.root


class Writer:
    """Knows who holds each module, so that a replacement costs what it touches."""

    def __init__(self, root: nn.Module, recording: Recording, make: Make | None = None) -> None:
        """``make`` builds what takes a region's place; the plain convolution by default."""
        self.root, self.recording, self.make = root, recording, make
        self.holders: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        self.became: dict[int, nn.Module] = {}
        self._hold(module for _, module in recording.modules)

    def _hold(self, parents: Iterable[nn.Module]) -> None:
        for parent in parents:
            for name, child in parent._modules.items():
                if child is not None:
                    self.holders[id(child)].append((parent, name))

    def write(self, site: Site) -> None:
        """One chain or child."""
        for position, step in enumerate(site.steps):
            module = step.frame.module
            if position != site.anchor:
                self.replace(module, self._around(step, emptied(module)))
            elif site.in_place and self.make is None:
                affine = site.fact.evaluate(self.recording.graph.device)
                like = module._parameters["weight"]
                dtype = self.recording.graph.values[site.fact.value].dtype
                weight, bias = parameters(affine, dtype, like, site.linear)
                module._parameters.update(weight=weight, bias=bias)
            else:
                self.replace(module, self._around(step, self.layer(site)))

    def layer(self, site: Site) -> nn.Module:
        """The convolution of a site."""
        affine = site.fact.evaluate(self.recording.graph.device)
        if self.make is not None:
            return self.make(site, affine)
        dtype = self.recording.graph.values[site.fact.value].dtype
        stands = isinstance(site.steps[site.anchor].frame.module, StandIn)
        return emit(affine, dtype, _weight_like(site, self.recording), site.linear, pads_same=stands)

    def replace(self, old: nn.Module, new: nn.Module) -> None:
        """Every reference to ``old`` becomes ``new``, which takes over the attributes that it lacks."""
        _carry_attributes(old, new)
        self.became[id(old)] = new
        if self.root is old:
            self.root = new
        for parent, name in self.holders.pop(id(old), ()):
            if parent._modules.get(name) is old:
                parent._modules[name] = new
                self.holders[id(new)].append((parent, name))
        self._hold(each_module(new))

    def _around(self, step: Step, layer: nn.Module) -> nn.Module:
        """The layer between the module's other calls; an empty layer is left out where there are others."""
        before = [(_name(call), self._now(call.module)) for call in step.before]
        after = [(_name(call), self._now(call.module)) for call in step.after]
        if (before or after) and type(layer) is nn.Identity:
            return chain([*before, *after])
        return chain([*before, ("conv", layer), *after])

    def _now(self, module: nn.Module) -> nn.Module:
        """What stands in the module's place by now."""
        return self.became.get(id(module), module)


def _weight_like(site: Site, recording: Recording) -> Tensor | None:
    """A weight of the region, for its device and memory format; the largest speaks for all."""
    records = [recording.graph.nodes[node].records[0] for node in site.fact.members]
    weights = [record.weight for record in records if isinstance(record, Convolution | Linear)]
    return max(weights, key=lambda weight: weight.numel(), default=None)


def _name(frame: Frame) -> str:
    return frame.path.rpartition(".")[2]


def _carry_attributes(old: nn.Module, new: nn.Module) -> None:
    """Plain attributes that the new module's own do not need: what a parent may ask its child for."""
    free = isinstance(new, nn.Sequential | nn.Identity | torch.fx.GraphModule)
    for name, value in vars(old).items():
        if name.startswith("_") or name in vars(new) or isinstance(value, nn.Module | Tensor):
            continue
        if free or name not in dir(new):
            setattr(new, name, value)
