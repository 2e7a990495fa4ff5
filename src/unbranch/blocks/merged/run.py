"""What a plan says, done on an input; and what the norms remember of it."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from unbranch.blocks.merged.fold import Fold
from unbranch.blocks.merged.function import Call, Merged, Road
from unbranch.blocks.merged.norms import AddedNorms
from unbranch.blocks.merged.plan import TrainingPlan
from unbranch.blocks.merged.roads import Stepwise, Whole, has_kernels
from unbranch.blocks.merged.terms import Term
from unbranch.blocks.merged.windows import Channels, Columns, Rows, Taps
from unbranch.blocks.pointwise import layout_of, pixels
from unbranch.ops.batch_norm import track


def run_sum(plan: TrainingPlan, x: Tensor, branches: Mapping[str, nn.Module], rectifies: bool) -> Tensor:
    """The sum of all branches, or max(0, sum), their running statistics updated as theirs.

    Shapes: (N, C_in, *size) -> (N, C_out, *out), in the layout of ``x`` where anything is merged.
    """
    # Norms that are added last rectify what they store.
    closing = rectifies and 0 < len(plan.normed) == len(plan.apart)
    total = None if plan.fold is None else _run_merged(plan, plan.fold, x)
    if plan.normed:
        total = _add_norms(list(plan.normed.values()), x, total, closing)
    assert total is not None, "a plan without anything in one call"
    for name in plan.apart:
        if name not in plan.normed:
            total += branches[name](x)  # nothing else reads what was made here
    return total.relu_() if rectifies and not closing else total


def _run_merged(plan: TrainingPlan, fold: Fold, x: Tensor) -> Tensor:
    data, road = _road(plan, fold, x)
    window = fold.terms[0].window
    out = window.out_size(tuple(x.shape[2:]))
    shape = (len(x), window.outputs, *out)
    y, mean, variance = Merged.apply(data, Call(road, shape, layout_of(x)), *fold.parameters())
    _remember(fold.terms, y, mean, variance)
    return y


def _add_norms(terms: Sequence[Term], x: Tensor, total: Tensor | None, rectifies: bool) -> Tensor:
    values = [term.value(x) for term in terms]
    parameters = [p for term in terms for p in (term.norm.weight, term.norm.bias)]
    y, mean, variance = AddedNorms.apply([t.norm.eps for t in terms], rectifies, total, *values, *parameters)
    _remember(terms, y, mean, variance)
    return y


def _remember(terms: Sequence[Term], y: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Statistics of one more batch, from those over its M values."""
    count = y.numel() // y.shape[1]
    seen = (t.to(y.dtype) for t in (mean, variance.mul_(count / (count - 1))))
    track([term.norm for term in terms], *seen)


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
