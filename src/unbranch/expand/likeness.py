"""Give a plain network the branches that an expanded one has, by the names and shapes of its tensors."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unbranch.expand.expanded import Expanded
from unbranch.expand.expansion import PLAIN, expand_, spec_of
from unbranch.expand.recipes import RECIPES
from unbranch.frontends.modules import ExampleInputs, unwrap

_BRANCHES = re.compile(r"(?<=[^.])(?=\.branches\.)")


def expand_like_(
    model: nn.Module, tensors: Mapping[str, Tensor], example_inputs: ExampleInputs = None
) -> dict[str, str]:
    """Branches, in place, wherever ``tensors`` holds those of a recipe for a convolution of the model: the recipe's name by path.

    The branches' values are fresh: the caller loads ``tensors`` into them. The model's mode is kept.

    Raises:
        ValueError: branches that no recipe of `RECIPES` makes, or what `expand_` raises. The model is unchanged then.

    Example:
        >>> def net():
        ...     return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
        >>> wide = net()
        >>> expand_(wide, "dbb").layers
        ('0',)
        >>> expand_like_(net(), wide.state_dict())
        {'0': 'dbb'}
    """
    inner, _ = unwrap(model)
    found = {path: _recipe_in(path, layer, tensors) for path, layer in _missing(inner, tensors)}
    together: defaultdict[str, set[str]] = defaultdict(set)
    for path, recipe in found.items():
        together[recipe].add(path)
    with unchanged_on_error(inner), _evaluating(inner):
        for recipe, paths in together.items():
            expand_(inner, recipe, example_inputs, where=_one_of(paths))
    for path in found:
        layer = inner.get_submodule(path)
        if isinstance(layer, Expanded):
            layer.plain_norm = None  # of the values that are about to be overwritten
    return found


def _missing(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, nn.Module]]:
    """The plain convolutions that have branches in the tensors."""
    parents = {name[: mark.start()] for name in tensors for mark in _BRANCHES.finditer(name)}
    for path, module in model.named_modules():
        if isinstance(module, PLAIN) and path in parents:
            yield path, module


def _recipe_in(path: str, layer: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """The recipe whose branches have these names and shapes."""
    assert isinstance(layer, PLAIN)
    prefix = f"{path}.branches."
    stored = {
        name.removeprefix(prefix): value.shape for name, value in tensors.items() if name.startswith(prefix)
    }
    for recipe, make in RECIPES.items():
        try:
            with torch.device("meta"):
                made = make(spec_of(layer, None)).state_dict()
        except ValueError:  # this recipe cannot express the layer
            continue
        if {name: value.shape for name, value in made.items()} == stored:
            return recipe
    raise ValueError(
        f"{path}: its branches ({', '.join(sorted({name.split('.')[0] for name in stored}))}) are those of none of "
        f"{', '.join(RECIPES)}: expand the model as that one was, then load"
    )


def _one_of(paths: set[str]) -> Callable[[str, nn.Module], bool]:
    return lambda path, module: path in paths


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Put every child back where it stood if what is done inside fails."""
    before = [(module, dict(module._modules)) for module in model.modules()]
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            for module, children in before:
                module._modules.clear()
                module._modules.update(children)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode, then as before; what is new takes the model's own mode."""
    modes = {module: module.training for module in model.modules()}
    training = model.training
    model.eval()
    try:
        yield
    finally:
        for module in {*model.modules(), *modes}:
            module.training = modes.get(module, training)
