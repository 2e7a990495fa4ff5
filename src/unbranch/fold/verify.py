"""Prove a fold: run before and after on the same inputs, at another size too, in float64 and in the working dtype."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from unbranch.fold.certificate import TOLERANCES, Certificate, Check, fold_error, tensors_in
from unbranch.fold.report import Report

Sizes: TypeAlias = Sequence[Sequence[int]] | None
Run: TypeAlias = Callable[..., Any]

RUN_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AssertionError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
)
"""What a network may raise for an input that it does not take."""


def compare(
    before: Run, after: Run, args: Sequence[Any], kwargs: Mapping[str, Any], stored: torch.dtype | None = None
) -> list[Check]:
    """One run of each; every output tensor checked. ``stored`` is the dtype of the weights where they run in a wider one."""
    with torch.no_grad():
        expected = dict(tensors_in(before(*args, **kwargs)))
        found = dict(tensors_in(after(*args, **kwargs)))
    size = _size_of(args, kwargs)
    checks = []
    for path in dict.fromkeys([*expected, *found]):
        if path not in expected or path not in found:
            checks.append(Check(path, (), "missing", size, float("inf"), 0.0))
            continue
        tensor = expected[path]
        tolerance = TOLERANCES.get(stored or tensor.dtype, 0.0)
        error = fold_error(found[path], tensor)
        checks.append(Check(path, tuple(tensor.shape), _name(tensor.dtype, stored), size, error, tolerance))
    return checks


def _name(dtype: torch.dtype, stored: torch.dtype | None) -> str:
    name = str(dtype).removeprefix("torch.")
    weights = str(stored).removeprefix("torch.")
    return name if stored in (None, dtype) else f"{weights} weights in {name}"


def verify_modules(
    before: nn.Module,
    after: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    sizes: Sizes,
    report: Report | None,
) -> Certificate:
    """The certificate of two modules; neither is changed.

    Raises:
        ValueError: one of them is in training mode.
    """
    for name, module in (("before", before), ("after", after)):
        if module.training:
            raise ValueError(f"the model {name} folding is in training mode: call eval() first")
    checks = compare(before, after, args, kwargs)
    notes: list[str] = []
    others, why = _other_inputs(before, args, kwargs, sizes)
    if why:
        notes.append(why)
    for other_args, other_kwargs in others:
        checks += _compare_other(before, after, other_args, other_kwargs)
    stored = next((p.dtype for p in after.parameters() if p.is_floating_point()), None)
    worst = None
    try:
        wide_before, wide_after = copy.deepcopy(before).double(), copy.deepcopy(after).double()
        for some_args, some_kwargs in [(args, kwargs), *others]:
            found = compare(wide_before, wide_after, _double(some_args), _double(some_kwargs), stored)
            checks += [check for check in found if check not in checks]
        if report is not None:
            worst = _worst_place(wide_before, wide_after, _double(args), _double(kwargs), report)
    except RUN_ERRORS as error:
        notes.append(f"not run in float64: {str(error).splitlines()[0]}")
    return Certificate(tuple(checks), tuple(notes), worst)


def _compare_other(before: Run, after: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Check]:
    """At another size, which ``before`` is known to take; if ``after`` does not, that is a failure and no exception."""
    try:
        return compare(before, after, args, kwargs)
    except RUN_ERRORS as error:
        text = str(error).splitlines()[0]
        return [Check(f"raised: {text}", (), "none", _size_of(args, kwargs), float("inf"), 0.0)]


def _other_inputs(
    before: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], sizes: Sizes
) -> tuple[list[tuple[Any, Any]], str | None]:
    """The same arguments at other spatial sizes: the caller's, or the first of a few that the network takes."""
    if sizes is not None:
        return [(_resized(args, lambda _, s=s: s), _resized(kwargs, lambda _, s=s: s)) for s in sizes], None
    reason = "it takes no image-like tensor"
    for change in _CHANGES:
        other = _resized(args, change), _resized(kwargs, change)
        if _size_of(*other) == _size_of(args, kwargs):
            continue
        try:
            with torch.no_grad():
                before(*other[0], **other[1])
        except RUN_ERRORS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            continue
        return [other], None
    return [], f"no second size: the network takes only {_size_of(args, kwargs)} ({reason})"


_CHANGES: tuple[Callable[[Sequence[int]], Sequence[int]], ...] = (
    lambda size: [max(1, n - n // 7 - i) if n > 48 else n + 3 + i for i, n in enumerate(size)],
    lambda size: [n + 32 * (1 + i % 2) for i, n in enumerate(size)],
)
"""An odd size for the borders' sake, then one that keeps divisibility by 32."""


def _resized(tree: Any, change: Callable[[Sequence[int]], Sequence[int]]) -> Any:
    """Image-like tensors, (N, C, *size), in nested arguments, repeated or cut to another size."""
    if isinstance(tree, Tensor):
        if tree.ndim < 3 or not tree.is_floating_point():
            return tree
        size = list(change(list(tree.shape[2:])))
        if len(size) != tree.ndim - 2:
            return tree
        for axis, wanted in enumerate(size, start=2):
            at = torch.arange(wanted, device=tree.device) % max(1, tree.shape[axis])
            tree = tree.index_select(axis, at)
        return tree
    if isinstance(tree, Mapping):
        return {key: _resized(item, change) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_resized(item, change) for item in tree)
    return tree


def _double(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.double() if tree.is_floating_point() else tree
    if isinstance(tree, Mapping):
        return {key: _double(item) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_double(item) for item in tree)
    return tree


def _size_of(args: Any, kwargs: Any) -> str:
    shapes = ["x".join(map(str, tensor.shape)) for _, tensor in tensors_in([list(args), dict(kwargs)])]
    return ", ".join(shapes)


def _worst_place(before: nn.Module, after: nn.Module, args: Any, kwargs: Any, report: Report) -> str | None:
    """The folded place whose output differs most, each compared where its value leaves its module."""
    paths = {f.output: f.place for f in report.folded}
    first = dict(_outputs_at(before, paths, args, kwargs))
    second = dict(_outputs_at(after, paths, args, kwargs))
    errors = {paths[p]: fold_error(second[p], first[p]) for p in paths if p in first and p in second}
    if not errors:
        return None
    worst = max(errors, key=lambda place: errors[place])
    return f"{worst or '(root)'} ({errors[worst]:.1e})"


def _outputs_at(
    model: nn.Module, paths: Mapping[str, str], args: Any, kwargs: Any
) -> Iterator[tuple[str, Tensor]]:
    caught: dict[str, Tensor] = {}

    def catching(path: str) -> Callable[..., None]:
        def catch(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                caught[path] = output.detach().clone()

        return catch

    modules = dict(model.named_modules(remove_duplicate=False))
    handles = [modules[path].register_forward_hook(catching(path)) for path in paths if path in modules]
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    yield from caught.items()
