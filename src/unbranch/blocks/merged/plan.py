"""Which branches of a sum train as one convolution, by which road, and why the others do not."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from unbranch.blocks.merged import compiled
from unbranch.blocks.merged.cost import cost
from unbranch.blocks.merged.fold import Fold
from unbranch.blocks.merged.terms import Apart, Term, any_global_hook, plain, read_term

Training: TypeAlias = Literal["auto", "merged", "branches"]
Road: TypeAlias = Literal["pointwise", "channelwise", "patches", "depthwise"]

ROADS: dict[Road, str] = {
    "pointwise": "one 1x1 convolution, by the covariance of the input's channels",
    "channelwise": "one scale and shift, by each channel's variance",
    "patches": "one convolution, by the covariance of the input's patches",
    "depthwise": "one depthwise convolution, by the compiled kernels",
}
DTYPES = (torch.float32, torch.float64)
COMPILED_TAPS = 3


@dataclass(frozen=True)
class TrainingPlan:
    """What a sum of branches does in training mode with an input of one shape: ``print`` it.

    ``merged`` are the branches that train as one convolution, by ``road``; ``apart`` says of each other one why it is computed by itself.
    """

    merged: tuple[str, ...]
    road: Road | None
    apart: Mapping[str, str]
    fold: Fold | None = None

    def __str__(self) -> str:
        lines = [f"{name}: by itself: {why}" for name, why in self.apart.items()]
        if self.road is not None:
            lines.insert(0, f"{', '.join(self.merged)}: {ROADS[self.road]}")
        return "\n".join(lines)


def check_training(training: str) -> None:
    """Raises ValueError for what is no way to train."""
    if training not in get_args(Training):
        raise ValueError(f"training={training!r} is none of {', '.join(get_args(Training))}")


def plan_training(
    branches: Mapping[str, nn.Module], x: Tensor, training: Training, learning: bool
) -> TrainingPlan:
    """The plan for an input like ``x``; ``learning`` is the sum's own mode."""
    why = _unmergeable(x, training, learning)
    if why is not None:
        return TrainingPlan((), None, dict.fromkeys(branches, why))
    terms, apart = [], {}
    for name, branch in branches.items():
        try:
            terms.append(read_term(name, branch, x.shape))
        except Apart as reason:
            apart[name] = str(reason)
    apart |= _sharing(branches, terms, apart)
    plan = _choose(tuple(term for term in terms if term.name not in apart), apart, x, training)
    # They run in the order of the sum: statistics of norms that they share, and random numbers, depend on it.
    return replace(plan, apart={name: plan.apart[name] for name in branches if name in plan.apart})


def _sharing(
    branches: Mapping[str, nn.Module], terms: list[Term], apart: Mapping[str, str]
) -> dict[str, str]:
    """The terms whose norm another branch runs too: its statistics depend on which of them is first."""
    elsewhere = (module for name in apart for module in branches[name].modules())
    users = Counter[nn.Module](chain((term.norm for term in terms), elsewhere))
    why = "its norm is shared with another branch"
    return {term.name: why for term in terms if users[term.norm] > 1}


def _unmergeable(x: Tensor, training: Training, learning: bool) -> str | None:
    """Why nothing at all can be merged."""
    if training == "branches":
        return "training='branches'"
    if not learning:
        return "the block is in eval mode"
    if torch.compiler.is_compiling() or not plain(x):
        return "the block is traced or transformed"
    if any_global_hook():
        return "hooks are registered for every module"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast is on, and moments need float32"
    if x.dtype not in DTYPES:
        return f"the input is {x.dtype}, and moments need float32"
    if training == "auto" and x.device.type != "cpu":
        return f"on {x.device.type} training='auto' keeps the branches: ask for 'merged'"
    return None


def _choose(terms: tuple[Term, ...], apart: dict[str, str], x: Tensor, training: Training) -> TrainingPlan:
    """The widest road that is there and pays."""
    refused: dict[str, str] = {}
    for road, some in _roads(terms, x):
        others = [t.name for t in terms if t not in some and t.weight is not None] + list(apart)
        why = _refusal(road, some, x, training, bool(others))
        if why is None:
            names = tuple(term.name for term in some)
            rest = {t.name: refused.get(t.name, "no other branch is like it") for t in terms if t not in some}
            return TrainingPlan(names, road, {**apart, **rest}, _fold(some, x.shape[1]))
        refused |= {t.name: f"{refused[t.name]}; {why}" if t.name in refused else why for t in some}
    lonely = {t.name: refused.get(t.name, "no other branch is like it") for t in terms}
    return TrainingPlan((), None, {**apart, **lonely})


def _roads(terms: tuple[Term, ...], x: Tensor) -> list[tuple[Road, tuple[Term, ...]]]:
    """Sets of terms that read one window, the widest first."""
    found: list[tuple[Road, tuple[Term, ...]]] = []
    kernels = [term for term in terms if term.weight is not None]
    widest = max(kernels, key=lambda t: prod(t.size), default=None)
    if widest is not None and not widest.is_pointwise:
        some = tuple(term for term in terms if _fits(term, widest, x))
        depthwise = widest.groups == x.shape[1] == widest.norm.num_features
        found.append(("depthwise" if depthwise else "patches", some))
    pointwise = [term for term in terms if term.is_pointwise]
    first = next((term for term in pointwise if term.weight is not None), None)
    some = tuple(term for term in pointwise if first is None or _fits(term, first, x))
    single = first is None or first.groups == x.shape[1] == first.norm.num_features
    found.append(("channelwise" if single else "pointwise", some))
    return [(road, some) for road, some in found if some]


def _fits(term: Term, window: Term, x: Tensor) -> bool:
    """Whether the term's taps are among the window's, for the same outputs."""
    if term.norm.num_features != window.norm.num_features:
        return False
    if term.weight is not None and term.geometry == window.geometry:
        return True
    size = tuple(x.shape[2:])
    if term.weight is not None and (term.groups, term.stride) != (window.groups, window.stride):
        return False
    if term.weight is None and any(s != 1 for s in window.stride):
        return False
    if term.out_size(size) != window.out_size(size):
        return False
    axes = zip(
        term.size, term.dilation, term.before, window.size, window.dilation, window.before, strict=True
    )
    for k, d, b, room, step, before in axes:
        first = before - b
        if (k > 1 and d != step) or first < 0 or first % step or first // step + k > room:
            return False
    return True


def _refusal(
    road: Road, terms: tuple[Term, ...], x: Tensor, training: Training, keeps_other: bool
) -> str | None:
    """Why this road is not taken; None where it is. A lone 1x1 kernel saves its output beside another convolution, and only there."""
    window = max(terms, key=lambda t: prod(t.size))
    if len(terms) == 1 and not (road == "pointwise" and keeps_other):
        return "no other branch is like it"
    out = window.out_size(tuple(x.shape[2:]))
    outputs = len(x) * prod(out)
    if min(out) < 1:
        return f"its window does not fit into {tuple(x.shape[2:])}"
    if outputs < 2:
        return "one value for a channel has no variance"
    if any(p is not None and p.dtype != x.dtype for term in terms for p in term.parameters()):
        return f"its parameters are not {x.dtype}, as the input is"
    if any(p is not None and p.device != x.device for term in terms for p in term.parameters()):
        return f"its parameters are not on {x.device}, as the input is"
    if road == "depthwise" and (why := _uncompiled(window, x)) is not None:
        return why
    if road == "channelwise" or training == "merged":
        return None
    return _unprofitable(road, terms, window, outputs, x, keeps_other)


def _uncompiled(window: Term, x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"the compiled depthwise kernels run on the CPU, not on {x.device.type}"
    if len(window.size) > 2 or max(window.size) > COMPILED_TAPS:
        return f"the compiled depthwise kernels have at most {COMPILED_TAPS} taps on one or two axes"
    return compiled.unavailable()


def _unprofitable(
    road: Road, terms: tuple[Term, ...], window: Term, outputs: int, x: Tensor, keeps_other: bool
) -> str | None:
    depth = x.shape[1] // window.groups * prod(window.size)
    if road == "patches" and depth > window.norm.num_features:
        return f"{depth} values in a patch are more to keep than {window.norm.num_features} outputs"
    found = cost(road, terms, window, outputs, x.shape[1], keeps_other)
    if found.pays:
        return None
    return f"merging would cost {found.adds:.2e} multiply-adds to save {found.saves:.2e}"


def _fold(terms: tuple[Term, ...], channels: int) -> Fold:
    window = max(terms, key=lambda t: prod(t.size))
    terms = tuple(sorted(terms, key=lambda t: t.weight is None))
    groups = next((term.groups for term in terms if term.weight is not None), channels)
    return Fold(terms, groups, window.size, window.stride, window.dilation, window.before, window.after)
