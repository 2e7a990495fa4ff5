"""Give a trained plain network branches without changing what it computes."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbranch.affine import Affine, NotLinear
from unbranch.blocks import Branches, ConvSpec, Sum
from unbranch.blocks.spec import NORMS
from unbranch.expand.expanded import Expanded, expanded
from unbranch.expand.places import Places
from unbranch.expand.recipes import Recipe, recipe_of
from unbranch.frontends.modules import ExampleInputs, Recording, Where, to_affine, unwrap
from unbranch.frontends.modules.frames import Frame
from unbranch.frontends.modules.sites import Site
from unbranch.frontends.modules.writing import Writer

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SHOWN = 6
"""Paths that a message names."""


class SingleBranch(ValueError):
    """A recipe that adds nothing to a convolution."""


@dataclass(frozen=True)
class Expansion:
    """What `expand_` did: the paths of the layers that have branches now, and (path, why) of those left plain."""

    layers: tuple[str, ...]
    left: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        lines = [f"expanded {len(self.layers)} convolution{'s' * (len(self.layers) != 1)}"]
        lines += [f"  {path}" for path in self.layers]
        lines += [f"  left plain: {path}: {why}" for path, why in self.left]
        return "\n".join(lines)


def expand(
    model: nn.Module,
    recipe: str | Recipe = "repvgg",
    example_inputs: ExampleInputs = None,
    *,
    where: Where = None,
) -> nn.Module:
    """A copy of a trained network in which convolutions have branches: ``copy(x) == model(x)`` in eval mode.

    See `expand_`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
        >>> expand(net, example_inputs=torch.zeros(1, 3, 9, 9))(torch.zeros(1, 3, 5, 7)).shape
        torch.Size([1, 8, 5, 7])
    """
    inner, _ = unwrap(model)
    return _expand(copy.deepcopy(inner), recipe, example_inputs, where)[0]


def expand_(
    model: nn.Module,
    recipe: str | Recipe = "repvgg",
    example_inputs: ExampleInputs = None,
    *,
    where: Where = None,
) -> Expansion:
    """Turn chosen convolutions of a trained network into branches, in place: ``sum_b s_b (w_b * x) + t_b = W * x + b``.

    The norm directly behind a convolution goes into the branches, which have norms of their own (same eps and momentum); what else
    follows, linear or not, stays. New branches start
    from their layers' own initialisation; the branch with the full kernel makes up the difference. In training mode the norms use
    the batch's statistics: `calibrate` makes that the same function too. Make optimizers afterwards: the parameters are new ones.

    Args:
        model: In eval mode; plain convolutions of 1 to 3 dimensions, of any kernel and padding (even kernels, none, ``"same"``), strided,
            grouped, dilated, with or without bias and batch norm. Smaller branches read where the kernel's centre tap does, the input
            padded or cropped for that.
        recipe: A name (``"repvgg"``, ``"mobileone"``), or a function from a `blocks.ConvSpec` to `blocks.Branches`.
        example_inputs: As for `reparameterize`.
        where: A glob on module paths, or ``(path, module) -> bool``. By default every convolution that the recipe can express
            and that has more than one tap.

    Returns:
        The layers that have branches now. Parameters of the branches require gradients.

    Raises:
        ValueError: training mode; example inputs that the model does not take; ``where`` selects nothing, a layer with branches already,
            or a convolution that the recipe cannot express; the model itself is the convolution. The model is unchanged then.
        TypeError: an argument of another kind.

    Source: the inverse of structural re-parameterization (Ding et al., RepVGG, CVPR 2021).
    """
    if isinstance(unwrap(model)[0], PLAIN):
        raise ValueError("the model itself is the convolution, which cannot be replaced in place: use expand")
    return _expand(model, recipe, example_inputs, where)[1]


def _expand(
    model: nn.Module, recipe: str | Recipe, example_inputs: ExampleInputs, where: Where
) -> tuple[nn.Module, Expansion]:
    """The model inside its wrappers, or what stands for it, and what was done."""
    inner, _ = unwrap(model)
    make = recipe_of(recipe)
    _check(inner, where)
    places = Places.of(inner, example_inputs)
    left: list[tuple[str, str]] = []
    made: list[tuple[str, nn.Module, Site | None, Expanded]] = []
    for path, layer in _selected(inner, where):
        try:
            _check_calls(layer, places.recording.calls[id(layer)])
            site = places.site_of(layer)
            made.append((path, layer, site, _branches(layer, site, places.recording, make)))
        except SingleBranch as error:
            left.append((path, str(error)))
        except (NotLinear, ValueError) as error:
            if where is not None:
                raise ValueError(f"{path}: {error}") from error
            left.append((path, str(error)))
    if not made:
        raise ValueError(
            "no convolution of the model can be expanded" + "".join(f"; {p}: {why}" for p, why in left)
        )
    root = _place(inner, places.recording, made)
    return root, Expansion(tuple(path for path, *_ in made), tuple(left))


def _check(model: nn.Module, where: Where) -> None:
    """Refuse what is no network with numbers, and no choice of layers."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"a {type(model).__name__} is no module")
    if where is not None and (isinstance(where, type) or not (isinstance(where, str) or callable(where))):
        raise TypeError(
            f"where={where!r} is neither a glob on module paths nor a function of path and module"
        )
    for path, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"{path} is on the meta device, which holds no numbers: load weights first")


def _place(
    model: nn.Module, recording: Recording, made: Sequence[tuple[str, nn.Module, Site | None, Expanded]]
) -> nn.Module:
    layers = {id(layer): new for _, layer, _, new in made}

    def layer_of(site: Site, affine: Affine) -> nn.Module:
        return layers[id(site.steps[site.anchor].frame.module)]

    writer = Writer(model, recording, layer_of)
    for _, layer, site, new in made:
        if site is None:
            writer.replace(layer, new)
        else:
            writer.write(site)
    return writer.root


def _selected(model: nn.Module, where: Where) -> list[tuple[str, nn.Module]]:
    """The plain convolutions that ``where`` names, themselves or through a module around them."""
    chosen: list[tuple[str, nn.Module]] = []
    inside: list[str] = []
    for path, module in model.named_modules():
        owner = next((p for p in inside if path == p or path.startswith(f"{p}.") or not p), None)
        has_branches = isinstance(module, Expanded) or (
            isinstance(module, Branches) and not _is_single(module)
        )
        if has_branches and owner is None:
            inside.append(path)
        if isinstance(module, PLAIN) and _matches(path, module, model, where):
            if owner is not None and where is not None:
                raise ValueError(f"{path}: it is a branch of {owner or 'the root module'} already")
            if owner is None:
                chosen.append((path, module))
    if not chosen:
        raise ValueError(_nothing_chosen(model, where, inside))
    return chosen


def _nothing_chosen(model: nn.Module, where: Where, inside: Sequence[str]) -> str:
    """Why there is nothing to expand, and what there is instead."""
    if where is None:
        there = (
            f"; there are branches already in {_some([path or '(root)' for path in inside])}"
            if inside
            else ""
        )
        return f"the model has no plain convolution of more than one tap{there}"
    plain = [path or "(root)" for path, module in model.named_modules() if isinstance(module, PLAIN)]
    return f"where={where!r} selects no convolution; the model has {_some(plain) if plain else 'none'}"


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more


def _is_single(branches: Branches) -> bool:
    """A sum of one: a plain convolution with its norm, as an unfused YOLOv5 layer keeps them."""
    alone = isinstance(branches, Sum) and len(branches.names) == 1
    return alone and not isinstance(next(branches.children()), Branches)


def _matches(path: str, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, model: nn.Module, where: Where) -> bool:
    if where is None:
        return any(k > 1 for k in module.kernel_size)
    parts = path.split(".")
    around = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    if callable(where):
        return any(where(p, model.get_submodule(p)) for p in around)
    return any(fnmatchcase(p, where) for p in around)


def _check_calls(layer: nn.Module, calls: Sequence[Frame]) -> None:
    """Whoever calls or watches the layer must not notice that another one stands in its place.

    Raises:
        ValueError: somebody would; the message says why.
    """
    if not calls:
        raise ValueError("the example input never reaches it")
    if any(call.is_hooked for call in calls) or layer._backward_hooks or layer._backward_pre_hooks:
        raise ValueError("it has a hook, which would be lost: remove it, expand, and hook the new layer")
    for call in (call for call in calls if not call.is_torch):
        if len(call.inputs) != 1 or len(call.outputs) != 1 or call.given or call.named:
            raise ValueError(
                "it is called with something beside its input, or gives something beside its output"
            )


def _branches(layer: nn.Module, site: Site | None, recording: Recording, recipe: Recipe) -> Expanded:
    assert isinstance(layer, PLAIN)
    norm = None if site is None else site.steps[-1].frame.module
    spec = spec_of(layer, _factory_of(norm, len(layer.kernel_size)))
    alone = _alone(layer, torch.zeros((1, layer.in_channels, *spec.example_size)).to(layer.weight))
    target = alone if site is None else site.fact.evaluate(recording.graph.device)
    branches = recipe(spec)
    if not isinstance(branches, Branches):
        kind = type(branches).__name__
        raise TypeError(f"a recipe makes blocks.Branches of a blocks.ConvSpec; this one made a {kind}")
    if isinstance(branches, Sum) and _is_single(branches) and isinstance(branches.norm, nn.Identity):
        raise SingleBranch("the recipe makes one branch of it, which is what it is")
    return expanded(target, spec, branches, layer.weight.detach(), norm)


def _alone(layer: nn.Module, example: Tensor) -> Affine:
    """The map of the layer itself: one of somebody's own may compute more than the convolution that is found in it."""
    try:
        return to_affine(layer, example)
    except NotLinear as error:
        raise NotLinear(f"{error}: put a plain convolution in its place") from error


def spec_of(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, norm: Callable[[int], nn.Module] | None) -> ConvSpec:
    """What the branches of a convolution must amount to; ``norm`` makes theirs."""
    return ConvSpec.of(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        dilation=layer.dilation,
        padding=layer.padding,
        groups=layer.groups,
        padding_mode=layer.padding_mode,
        norm=norm,
        dims=len(layer.kernel_size),
    )


def _factory_of(norm: nn.Module | None, dims: int) -> Callable[[int], nn.Module] | None:
    """Makes norms like the one that goes into the branches; None, and so batch norms as they come, without one."""
    if norm is None:
        return None
    assert isinstance(norm, _BatchNorm)
    same = {"eps": norm.eps, "momentum": norm.momentum}
    if isinstance(norm, nn.SyncBatchNorm):
        return partial(nn.SyncBatchNorm, **same, process_group=norm.process_group)
    return partial(NORMS[dims - 1], **same)


def parameter_groups(model: nn.Module, lr: float, branch_lr: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: the network as it was at ``lr``, and the branches that `expand` added at ``branch_lr``.

    Example:
        >>> net = expand(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)).eval(), example_inputs=torch.zeros(1, 3, 9, 9))
        >>> [len(group["params"]) for group in parameter_groups(net, 0.01, 0.1)]
        [3, 5]
    """
    new = {
        id(p): p
        for module in model.modules()
        if isinstance(module, Expanded)
        for p in module.new_parameters()
    }
    old: list[Tensor] = [p for p in model.parameters() if id(p) not in new]
    return [{"params": old, "lr": lr}, {"params": list(new.values()), "lr": branch_lr}]
