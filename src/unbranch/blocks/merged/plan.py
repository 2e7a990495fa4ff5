"""Which branches of a sum train as one convolution, by which road, and why the others do not."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain
from math import prod
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from unbranch.blocks.merged import compiled
from unbranch.blocks.merged.cost import cost
from unbranch.blocks.merged.fold import Fold
from unbranch.blocks.merged.terms import (
    Apart,
    Term,
    Window,
    any_global_hook,
    in_channels_last,
    plain,
    read_term,
)
from unbranch.ops.batch_norm import Running

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
FEW = 16
"""Values in a patch for each output from which a covariance loses more digits than branches do."""
LONELY = "no other branch is like it"

Windows: TypeAlias = tuple[tuple[str, Window], ...]
"""Of terms, by name."""


@dataclass(frozen=True)
class TrainingPlan:
    """What a sum of branches does in training mode with an input of one shape: ``print`` it.

    ``merged`` are the branches that train as one convolution, by ``road``; ``apart`` says of each other one why its convolution is computed
    by itself; ``normed`` are those of them whose norms are computed and added up in one call.
    """

    merged: tuple[str, ...]
    road: Road | None
    apart: Mapping[str, str]
    fold: Fold | None = None
    normed: Mapping[str, Term] = field(default_factory=dict)

    @cached_property
    def running(self) -> Running:
        """Statistics of ``normed``'s norms."""
        return Running([term.norm for term in self.normed.values()])

    def __str__(self) -> str:
        lines = [f"{name}: by itself: {why}" for name, why in self.apart.items()]
        if self.road is not None:
            lines.insert(0, f"{', '.join(self.merged)}: {ROADS[self.road]}")
        if self.normed:
            lines.append(f"{', '.join(self.normed)}: batch norms in one call")
        return "\n".join(lines)


def check_training(training: str) -> None:
    """Raises ValueError for what is no way to train."""
    if training not in get_args(Training):
        raise ValueError(f"training={training!r} is none of {', '.join(get_args(Training))}")


def read_terms(branches: Mapping[str, nn.Module], x: Tensor) -> tuple[list[Term], dict[str, str]]:
    """The branches that are terms; why each other one is not."""
    terms, apart = [], {}
    for name, branch in branches.items():
        try:
            terms.append(read_term(name, branch, x))
        except Apart as reason:
            apart[name] = str(reason)
    apart |= _sharing(branches, terms, apart)
    return [term for term in terms if term.name not in apart], apart


def plan_terms(
    branches: Mapping[str, nn.Module],
    terms: Sequence[Term],
    apart: Mapping[str, str],
    x: Tensor,
    training: Training,
) -> TrainingPlan:
    """For an input like ``x``, and what ``read_terms`` found."""
    windows = tuple((term.name, term.window) for term in terms)
    shape, device, last = tuple(x.shape), x.device.type, in_channels_last(x)
    asked = Question(windows, bool(apart), shape, last, x.dtype, device, training, compiled.allowed())
    choice = _choose(asked)
    why = {**apart, **choice.apart}
    fold = _fold([term for term in terms if term.name in choice.merged], x.shape[1]) if choice.road else None
    # They run in the order of the sum: statistics of norms that they share, and random numbers, depend on it.
    rest = {name: why[name] for name in branches if name in why}
    normed = {term.name: term for term in terms if term.name in choice.normed}
    return TrainingPlan(choice.merged, choice.road, rest, fold, normed)


def _sharing(
    branches: Mapping[str, nn.Module], terms: list[Term], apart: Mapping[str, str]
) -> dict[str, str]:
    """The terms whose norm another branch runs too: its statistics depend on which of them is first."""
    elsewhere = (module for name in apart for module in branches[name].modules())
    users = Counter[nn.Module](chain((term.norm for term in terms), elsewhere))
    why = "its norm is shared with another branch"
    return {term.name: why for term in terms if users[term.norm] > 1}


def why_none(x: Tensor, training: Training, learning: bool) -> str | None:
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


class Question(NamedTuple):
    """All that a choice depends on: terms by name, whether there are other branches, the input, and what may be used."""

    windows: Windows
    others: bool
    shape: tuple[int, ...]
    channels_last: bool
    dtype: torch.dtype
    device: str
    training: Training
    compiles: bool

    @property
    def channels(self) -> int:
        """Of the input."""
        return self.shape[1]

    @property
    def size(self) -> tuple[int, ...]:
        """Of its pictures."""
        return self.shape[2:]


class Choice(NamedTuple):
    """What is merged by which road; why the other terms are not; and which of those have their norms in one call."""

    merged: tuple[str, ...]
    road: Road | None
    apart: Mapping[str, str]
    normed: tuple[str, ...] = ()


@lru_cache(maxsize=4096)
def _choose(asked: Question) -> Choice:
    """The widest road that is there and pays, and the norms beside it. Sums of one shape ask the same, so the answer is kept."""
    choice = _merge(asked)
    return choice._replace(normed=tuple(choice.apart)) if _has_norms(asked) else choice


def _has_norms(asked: Question) -> bool:
    """Whether compiled calls take the norms of all terms: in channels-last, values of one size and of more than one pixel, no others."""
    if asked.device != "cpu" or not asked.channels_last or not asked.compiles or asked.others:
        return False
    sizes = {(window.outputs, *window.out_size(asked.size)) for _, window in asked.windows}
    pixels = [asked.shape[0] * prod(size[1:]) for size in sizes if min(size) > 0]
    return len(sizes) == 1 and pixels > [1] and compiled.unavailable(asked.dtype) is None


def _merge(asked: Question) -> Choice:
    """The widest road that is there and pays."""
    refused: dict[str, str] = {}
    for road, some in _roads(asked):
        names = tuple(name for name, _ in some)
        beside = asked.others or any(w.has_kernel for name, w in asked.windows if name not in names)
        why = _refusal(road, [window for _, window in some], asked, beside)
        if why is None:
            rest = [name for name, _ in asked.windows if name not in names]
            return Choice(names, road, {name: refused.get(name, LONELY) for name in rest})
        refused |= {name: f"{refused[name]}; {why}" if name in refused else why for name in names}
    return Choice((), None, {name: refused.get(name, LONELY) for name, _ in asked.windows})


def _roads(asked: Question) -> list[tuple[Road, Windows]]:
    """Sets of terms that read one window, the widest first."""
    found: list[tuple[Road, Windows]] = []
    kernels = [window for _, window in asked.windows if window.has_kernel]
    widest = max(kernels, key=lambda w: w.taps, default=None)
    if widest is not None and not widest.is_pointwise:
        some = tuple(own for own in asked.windows if _fits(own[1], widest, asked.size))
        depthwise = widest.groups == asked.channels == widest.outputs
        found.append(("depthwise" if depthwise else "patches", some))
    pointwise = tuple(own for own in asked.windows if own[1].is_pointwise)
    first = next((window for _, window in pointwise if window.has_kernel), None)
    some = tuple(own for own in pointwise if first is None or _fits(own[1], first, asked.size))
    single = first is None or first.groups == asked.channels == first.outputs
    found.append(("channelwise" if single else "pointwise", some))
    return [(road, some) for road, some in found if some]


def _fits(own: Window, window: Window, size: tuple[int, ...]) -> bool:
    """Whether a term's taps are among the window's, for the same outputs."""
    if own.outputs != window.outputs:
        return False
    if own == window:
        return True
    if own.has_kernel and (own.groups, own.stride) != (window.groups, window.stride):
        return False
    if not own.has_kernel and any(s != 1 for s in window.stride):
        return False
    if own.out_size(size) != window.out_size(size):
        return False
    axes = zip(own.size, own.dilation, own.before, window.size, window.dilation, window.before, strict=True)
    for k, d, b, room, step, before in axes:
        first = before - b
        if (k > 1 and d != step) or first < 0 or first % step or first // step + k > room:
            return False
    return True


def _refusal(road: Road, windows: Sequence[Window], asked: Question, beside: bool) -> str | None:
    """Why this road is not taken; None where it is. A lone 1x1 kernel saves its output beside another convolution, and only there."""
    window = max(windows, key=lambda w: w.taps)
    if len(windows) == 1 and not (road == "pointwise" and beside):
        return LONELY
    out = window.out_size(asked.size)
    outputs = asked.shape[0] * prod(out)
    if min(out) < 1:
        return f"its window does not fit into {asked.size}"
    if outputs < 2:
        return "one value for a channel has no variance"
    depth = window.depth(asked.channels)
    if FEW * outputs < depth:
        return f"{outputs} outputs say too little of how {depth} values in a patch vary together"
    if road == "depthwise" and (len(window.size) > 2 or max(window.size) > COMPILED_TAPS):
        return f"the compiled depthwise kernels have at most {COMPILED_TAPS} taps on one or two axes"
    if road != "channelwise" and asked.training != "merged":
        why = _unprofitable(road, windows, window, outputs, asked.channels, beside)
        if why is not None:
            return why
    return _uncompiled(asked) if road == "depthwise" else None


def _uncompiled(asked: Question) -> str | None:
    if asked.device != "cpu":
        return f"the compiled depthwise kernels run on the CPU, not on {asked.device}"
    return compiled.unavailable(asked.dtype)


def _unprofitable(
    road: Road, windows: Sequence[Window], window: Window, outputs: int, channels: int, beside: bool
) -> str | None:
    depth = window.depth(channels)
    if road == "patches" and depth > window.outputs:
        return f"{depth} values in a patch are more to keep than {window.outputs} outputs"
    found = cost(road, windows, window, outputs, channels, beside)
    if found.pays:
        return None
    return f"merging would cost {found.adds:.2e} multiply-adds to save {found.saves:.2e}"


def _fold(terms: Sequence[Term], channels: int) -> Fold:
    window = max((term.window for term in terms), key=lambda w: w.taps)
    terms = tuple(sorted(terms, key=lambda t: t.weight is None))
    groups = next((term.window.groups for term in terms if term.weight is not None), channels)
    return Fold(terms, groups, window.size, window.stride, window.dilation, window.before, window.after)
