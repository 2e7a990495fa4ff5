"""Nested arguments and results: what they hold, whatever containers and plain objects it lies in."""

import copy
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import MemberDescriptorType, MethodType
from typing import Any

from torch import Tensor, nn

from unbranch.frontends.modules.numbers import is_sized


def tensors_of(tree: Any, depth: int = 8) -> Iterator[Tensor]:
    """Every tensor in nested containers and plain objects."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from tensors_of(item, depth)
    elif isinstance(tree, list | tuple | set | deque):
        for item in tree:
            yield from tensors_of(item, depth)
    elif depth and not isinstance(tree, nn.Module | type | str | bytes) and not is_sized(tree):
        for item in attributes_of(tree).values():
            yield from tensors_of(item, depth - 1)


def attributes_of(thing: Any) -> dict[str, Any]:
    """What a plain object holds, in slots or not; nothing for one that has no attributes of its own."""
    slots = [slot for kind in type(thing).__mro__ for slot in kind.__dict__.values() if type(slot) is _SLOT]
    found = {slot.__name__: slot.__get__(thing) for slot in slots if _is_set(slot, thing)}
    try:
        return found | vars(thing) if found else vars(thing)
    except TypeError:
        return found


def _is_set(slot: MemberDescriptorType, thing: Any) -> bool:
    try:
        slot.__get__(thing)
    except AttributeError:
        return False
    return True


_SLOT = MemberDescriptorType


def leaves(tree: Any) -> Iterator[Any]:
    """Whatever nested containers hold that is no container."""
    if isinstance(tree, dict):
        for item in tree.values():
            yield from leaves(item)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from leaves(item)
    else:
        yield tree


def replaced(tree: Any, replace: Callable[[Tensor], Any]) -> Any:
    """Nested containers with something else in each tensor's place."""
    if isinstance(tree, Tensor):
        return replace(tree)
    if isinstance(tree, dict):
        return {key: replaced(item, replace) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [replaced(item, replace) for item in tree]
    return tree


def each_module(root: nn.Module) -> Iterator[nn.Module]:
    """Every module once, in no order to rely on: `nn.Module.modules` without its search for names."""
    seen: set[int] = set()
    rest = [root]
    while rest:
        module = rest.pop()
        if id(module) not in seen:
            seen.add(id(module))
            rest += [child for child in module._modules.values() if child is not None]
            yield module


def held_elsewhere(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[int, str]]:
    """Modules, by ``id``, that attributes hold beside the registered children: in a list, a dict, a bound method or unregistered."""
    for path, module in modules:
        rest = [
            (name, value)
            for name, value in vars(module).items()
            if (kind := type(value)) not in _PLAIN and (kind not in _CONTAINERS or value)
        ]
        for name, value in rest:
            if name not in _REGISTERED and not (type(value) is tuple and _PLAIN.issuperset(map(type, value))):
                for found in _modules_in(value):
                    yield id(found), f"{path}.{name}".lstrip(".")


_REGISTERED = frozenset(("_modules", "_parameters", "_buffers"))
_PLAIN = frozenset((bool, int, float, str, type(None), Tensor, nn.Parameter))
_CONTAINERS = frozenset((dict, OrderedDict, list, tuple, set))


def _modules_in(tree: Any, depth: int = 4) -> Iterator[nn.Module]:
    if isinstance(tree, nn.Module):
        yield tree
    elif isinstance(tree, MethodType):
        yield from _modules_in(tree.__self__, depth)
    elif isinstance(tree, partial):
        yield from _modules_in([tree.func, *tree.args, *tree.keywords.values()], depth)
    elif depth and isinstance(tree, dict | list | tuple | set):
        for item in tree.values() if isinstance(tree, dict) else tree:
            if type(item) not in _PLAIN:
                yield from _modules_in(item, depth - 1)


def lent_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters are its own and lie in the model's memory: what a fold takes away is never copied.

    `settled` ends the loan. A weight that a hook computed, which torch refuses to copy, is a constant until the hook runs again.

    Raises:
        ValueError: something that a module holds cannot be copied.
    """
    known: dict[int, Tensor] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter:
            known[id(parameter)] = nn.Parameter(parameter.data, parameter.requires_grad)
    try:
        return copy.deepcopy(model, known)
    except TypeError as error:
        raise ValueError(
            f"{_uncopied(model)} cannot be copied ({error}): use reparameterize_, which folds where the model stands"
        ) from error


def _uncopied(model: nn.Module) -> str:
    """The first attribute of a module that cannot be copied by itself."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in _REGISTERED:
                continue
            try:
                copy.deepcopy(value)
            except (TypeError, RuntimeError):
                return f"{path}.{name}".lstrip(".")
    return type(model).__name__


def settled(copied: nn.Module, model: nn.Module) -> nn.Module:
    """The copy, with memory of its own for every parameter that still lies in the model's."""
    lent = {parameter.data_ptr() for parameter in model.parameters()}
    for parameter in copied.parameters():
        if parameter.data_ptr() in lent:
            parameter.data = parameter.data.clone()
    return copied
