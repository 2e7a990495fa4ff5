"""What a plan says, done on an input; and what the norms remember of it."""

from collections.abc import Callable, Mapping
from functools import partial
from math import prod

from torch import Tensor, nn

from unbranch.blocks.merged.compiled import kernels
from unbranch.blocks.merged.fold import Fold
from unbranch.blocks.merged.function import Call, Merged, Road
from unbranch.blocks.merged.norms import Added, AddedNorms
from unbranch.blocks.merged.plan import TrainingPlan
from unbranch.blocks.merged.roads import Stepwise, Whole, has_kernels
from unbranch.blocks.merged.terms import in_channels_last
from unbranch.blocks.merged.windows import Channels, Columns, Rows, Taps
from unbranch.blocks.pointwise import layout_of, pixels
from unbranch.ops.batch_norm import Running


def run_sum(plan: TrainingPlan, x: Tensor, branches: Mapping[str, nn.Module], rectifies: bool) -> Tensor:
    """The sum of all branches, or max(0, sum), their running statistics updated as theirs.

    Shapes: (N, C_in, *size) -> (N, C_out, *out), in the layout of ``x`` where anything is merged.
    """
    total = None if plan.fold is None else _run_merged(plan, plan.fold, x)
    if plan.normed:
        total, rectified = _add_norms(plan, x, total, rectifies)
        return total.relu_() if rectifies and not rectified else total
    assert total is not None, "a plan without anything in one call"
    for name in plan.apart:
        own = branches[name](x)
        alike = (own.dtype, own.shape) == (total.dtype, total.shape)
        total = total.add_(own) if alike else total + own  # nothing else reads what was merged
    return total.relu_() if rectifies else total


def _run_merged(plan: TrainingPlan, fold: Fold, x: Tensor) -> Tensor:
    data, road = _road(plan, fold, x)
    window = fold.terms[0].window
    out = window.out_size(tuple(x.shape[2:]))
    call = Call(
        road, (len(x), window.outputs, *out), layout_of(x), _memory(fold.running, len(x) * prod(out), x)
    )
    return Merged.apply(data, call, *fold.parameters)


def _add_norms(plan: TrainingPlan, x: Tensor, total: Tensor | None, rectifies: bool) -> tuple[Tensor, bool]:
    """The sum, and whether it is rectified; by the norms themselves where a convolution did not keep to channels-last."""
    terms = plan.normed.values()
    values = [term.value(x) for term in terms]
    if not all(map(in_channels_last, values)):
        for term, value in zip(terms, values, strict=True):
            own = term.norm(value)
            total = own if total is None else total + own
        assert total is not None
        return total, False
    parameters = [p for term in terms for p in term.parameters[1:]]
    eps = tuple(term.norm.eps for term in terms)
    added = Added(eps, rectifies, _memory(plan.running, values[0].numel() // values[0].shape[1], x))
    return AddedNorms.apply(added, total, *values, *parameters), rectifies


def _memory(running: Running, count: int, x: Tensor) -> Callable[[Tensor, Tensor], None]:
    """What takes the means and variances over ``count`` values of one more batch into the norms' statistics."""
    return partial(running.track, count=count, update=kernels(x.dtype).track if has_kernels(x) else None)


def _road(plan: TrainingPlan, fold: Fold, x: Tensor) -> tuple[Tensor, Road]:
    """The tensor that is kept for backward, and what is done with it."""
    if plan.road == "depthwise":
        # One axis is two, the first of them of one pixel.
        flat = 4 - x.ndim
        ones, zeros = (1,) * flat, (0,) * flat
        size = (*ones, *x.shape[2:])
        taps = Taps(
            kernel=(*ones, *fold.size),
            stride=(*ones, *fold.stride),
            dilation=(*ones, *fold.dilation),
            before=(*zeros, *fold.before),
            out=(*ones, *fold.terms[0].window.out_size(tuple(x.shape[2:]))),
        )
        return x.movedim(1, -1).contiguous().view(len(x), *size, -1), Whole(fold, taps)
    if plan.road == "patches":
        return _patches(fold, x), Stepwise(fold, lambda data, mean: Columns(data, fold.groups, mean))
    # Strided by hand: oneDNN's backward of a strided pointwise convolution crashes on few channels, channels last.
    rows = pixels(x, fold.stride).movedim(1, -1).flatten(0, -2)
    if plan.road == "channelwise":
        return rows, Stepwise(fold, Channels)
    if has_kernels(rows):
        return rows, Whole(fold)
    return rows, Stepwise(fold, lambda data, mean: Rows(data, fold.groups, mean))


def _patches(fold: Fold, x: Tensor) -> Tensor:
    """(N, C * taps, L): every window's values, channels first, of L windows a picture."""
    dims, axes = len(fold.size), range(2, x.ndim)
    padding = [n for pair in zip(reversed(fold.before), reversed(fold.after), strict=True) for n in pair]
    x = nn.functional.pad(x.contiguous(), padding)
    for axis, k, s, d in zip(axes, fold.size, fold.stride, fold.dilation, strict=True):
        x = x.unfold(axis, (k - 1) * d + 1, s)[..., ::d]
    return x.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *axes).flatten(2 + dims).flatten(1, 1 + dims)
