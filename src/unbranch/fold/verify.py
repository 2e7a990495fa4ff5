"""Prove a fold: run before and after on the same inputs, at another size too, in float64 and in the working dtype."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from unbranch.fold.certificate import TOLERANCES, Certificate, Check, fold_error, tensors_in
from unbranch.fold.keeping import attributes_kept, buffers_kept, copied
from unbranch.fold.precision import full_precision
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


ROUNDING = 4.0
"""How many times the network's own rounding error two correct evaluations of it may differ."""


def outputs_of(run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that one run returns. What it writes to its inputs and its buffers, it writes to copies, or it is put back."""
    with torch.no_grad(), _kept(run):
        made = dict(tensors_in(run(*copied(args), **copied(kwargs))))
        own = {b.data_ptr() for b in run.buffers()} if isinstance(run, nn.Module) else set()
        return {path: t.clone() if t.data_ptr() in own else t for path, t in made.items()}


@contextmanager
def _kept(run: Run) -> Iterator[None]:
    if not isinstance(run, nn.Module):
        yield
        return
    with attributes_kept(run), buffers_kept(run):
        yield


def compare(
    before: Run,
    after: Run,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    stored: torch.dtype | None = None,
    exact: Mapping[str, Tensor] | None = None,
) -> list[Check]:
    """One run of each; every output tensor checked.

    ``stored`` is the dtype of the weights where they run in a wider one. ``exact`` holds the outputs of ``before`` in float64: where
    rounding alone moves an output by more than the limit, the limit is `ROUNDING` times that.
    """
    expected, found = outputs_of(before, args, kwargs), outputs_of(after, args, kwargs)
    size = _size_of(args, kwargs)
    checks = []
    for path in dict.fromkeys([*expected, *found]):
        if path not in expected or path not in found:
            checks.append(Check(path, (), "missing", size, float("inf"), 0.0))
            continue
        tensor = expected[path]
        tolerance = TOLERANCES.get(stored or tensor.dtype, 0.0)
        if exact is not None and path in exact and tensor.is_floating_point():
            tolerance = max(tolerance, _finite(ROUNDING * fold_error(tensor, exact[path])))
        error = fold_error(found[path], tensor)
        checks.append(Check(path, tuple(tensor.shape), _name(tensor.dtype, stored), size, error, tolerance))
    return checks


def _finite(number: float) -> float:
    return number if isfinite(number) else 0.0


def _name(dtype: torch.dtype, stored: torch.dtype | None) -> str:
    name = str(dtype).removeprefix("torch.")
    weights = str(stored).removeprefix("torch.")
    return name if stored in (None, dtype) else f"{weights} weights in {name}"


@full_precision()
def verify_modules(
    before: nn.Module,
    after: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    sizes: Sizes,
    report: Report | None,
    others: Sequence[tuple[Any, Any]] | None = None,
) -> Certificate:
    """The certificate of two modules; neither is changed. ``others`` are more (args, kwargs) to run, in place of guessed sizes.

    Float32 is computed as ``full_precision`` says: with TF32 the limits would grow by its rounding, and a fold that is wrong by less
    would pass.

    Raises:
        ValueError: one of them is in training mode.
    """
    for name, module in (("before", before), ("after", after)):
        if module.training:
            raise ValueError(f"the model {name} folding is in training mode: call eval() first")
    notes: list[str] = []
    why = None
    if others is None:
        others, why = _other_inputs(before, args, kwargs, sizes)
    if why:
        notes.append(why)
    inputs = [(args, kwargs), *others]
    stored = next((p.dtype for p in after.parameters() if p.is_floating_point()), None)
    wide: list[Check] = []
    exact: list[dict[str, Tensor] | None] = [None] * len(inputs)
    worst = None
    try:
        wide_before, wide_after = copy.deepcopy(before).double(), copy.deepcopy(after).double()
        for position, (some, named) in enumerate(inputs):
            exact[position] = outputs_of(wide_before, _double(some), _double(named))
            if stored is not torch.float64:
                wide += _wide(before, wide_before, wide_after, (some, named), stored, exact[position])
        if report is not None:
            worst = _worst_place(wide_before, wide_after, _double(args), _double(kwargs), report)
    except RUN_ERRORS as error:
        notes.append(f"not run in float64: {_first_line(error)}")
    checks = compare(before, after, args, kwargs, exact=exact[0])
    for (some, named), reference in zip(others, exact[1:], strict=True):
        checks += _compare_other(before, after, some, named, reference)
    checks += wide
    raised = [check for check in checks if check.tolerance > TOLERANCES.get(stored or torch.float32, 0.0)]
    if raised:
        notes.append(
            f"rounding alone moves {len(raised)} of the outputs of the network as it was by more than the limit: "
            f"there the limit is {ROUNDING:.0f} times that"
        )
    return Certificate(tuple(checks), tuple(notes), worst)


def _wide(
    before: Run,
    wide_before: Run,
    wide_after: Run,
    inputs: tuple[Sequence[Any], Mapping[str, Any]],
    stored: torch.dtype | None,
    exact: Mapping[str, Tensor] | None,
) -> list[Check]:
    """The stored weights in float64 arithmetic, with the limit that the stored dtype's rounding sets."""
    some, named = inputs
    checks = compare(wide_before, wide_after, _double(some), _double(named), stored)
    limits = {c.output: c.tolerance for c in compare(before, before, some, named, exact=exact)}
    return [replace(check, tolerance=max(check.tolerance, limits.get(check.output, 0.0))) for check in checks]


def _first_line(error: BaseException) -> str:
    text = str(error)
    return text.splitlines()[0] if text else type(error).__name__


def _compare_other(
    before: Run,
    after: Run,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    exact: Mapping[str, Tensor] | None,
) -> list[Check]:
    """At another size, which ``before`` is known to take; if ``after`` does not, that is a failure and no exception."""
    try:
        return compare(before, after, args, kwargs, exact=exact)
    except RUN_ERRORS as error:
        return [Check(f"raised: {_first_line(error)}", (), "none", _size_of(args, kwargs), float("inf"), 0.0)]


def _other_inputs(
    before: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], sizes: Sizes
) -> tuple[list[tuple[Any, Any]], str | None]:
    """The same arguments at other spatial sizes: the caller's, or the first of a few that the network takes."""
    if sizes is not None:
        _check_asked(sizes, args, kwargs)
        return [(_resized(args, lambda _, s=s: s), _resized(kwargs, lambda _, s=s: s)) for s in sizes], None
    reason = "it takes no image-like tensor"
    for change in _CHANGES:
        other = _resized(args, change), _resized(kwargs, change)
        if _size_of(*other) == _size_of(args, kwargs):
            continue
        try:
            outputs_of(before, *other)
        except RUN_ERRORS as error:
            reason = _first_line(error)
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
    return tree_map_only(Tensor, partial(_resize, change=change), tree)


def _resize(tensor: Tensor, change: Callable[[Sequence[int]], Sequence[int]]) -> Tensor:
    size = list(change(list(tensor.shape[2:]))) if _is_image_like(tensor) else []
    if len(size) != tensor.ndim - 2:
        return tensor
    for axis, wanted in enumerate(size, start=2):
        at = torch.arange(wanted, device=tensor.device) % max(1, tensor.shape[axis])
        tensor = tensor.index_select(axis, at)
    return tensor


def _is_image_like(tensor: Tensor) -> bool:
    return tensor.ndim >= 3 and tensor.is_floating_point()


def _double(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, tree)


def _check_asked(sizes: Any, args: Any, kwargs: Any) -> None:
    """Raises ValueError for what is no list of sizes, or none that an input could have."""
    axes = sorted({t.ndim - 2 for _, t in tensors_in([list(args), dict(kwargs)]) if _is_image_like(t)})
    for size in sizes if isinstance(sizes, list | tuple) else [sizes]:
        whole = isinstance(size, list | tuple) and all(isinstance(n, int) and n > 0 for n in size)
        if not whole or len(size) not in axes:
            wanted = " or ".join(map(str, axes)) or "no"
            raise ValueError(
                f"sizes={sizes!r}: a list of sizes is wanted, such as [(96, 160)], each with {wanted} numbers of pixels, "
                "as the inputs have axes behind their channels"
            )


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
        outputs_of(model, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    yield from caught.items()
