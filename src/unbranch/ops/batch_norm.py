"""Batch norm in evaluation: ``y = gamma * (x - mean) / sqrt(var + eps) + beta``, a scale and a shift per channel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from unbranch.affine import Affine, NotLinear
from unbranch.ops.table import Argument, Map, constant, finite, operand, reads


@dataclass(frozen=True, eq=False)
class BatchNorm(Map):
    """Frozen statistics, with or without a learnt scale and shift."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    eps: float

    def affine(self, channels: int) -> Affine:
        """In float64: the square root of a half-precision variance is where folds lose their digits."""
        scale = torch.rsqrt(self.var.double() + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.double()
        shift = -self.mean.double() * scale
        if self.bias is not None:
            shift = shift + self.bias.double()
        return Affine.diagonal(finite(scale, "the norm's scale"), finite(shift, "the norm's shift"), rank=0)


def build(x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, eps: float) -> BatchNorm:
    """The record of a batch norm call in any spelling."""
    operand(x, "the input")
    if training or mean is None or var is None:
        raise NotLinear("a batch norm that uses the batch's own statistics")
    for name, part in (("weight", weight), ("bias", bias), ("mean", mean), ("variance", var)):
        constant(part, f"the norm's {name}")
    return BatchNorm(weight, bias, mean, var, eps)


@reads("aten.native_batch_norm.default", "aten._native_batch_norm_legit.default")
def native_batch_norm(
    input: Any,
    weight,
    bias,
    running_mean,
    running_var,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[BatchNorm, None, None]:
    return build(input, weight, bias, running_mean, running_var, training, eps), None, None


@reads("aten._native_batch_norm_legit_no_training.default")
def native_batch_norm_no_training(
    input: Any, weight, bias, running_mean, running_var, momentum: float, eps: float
) -> tuple[BatchNorm, None, None]:
    return build(input, weight, bias, running_mean, running_var, False, eps), None, None


@reads("aten.batch_norm.default")
def batch_norm(
    input: Any,
    weight,
    bias,
    running_mean,
    running_var,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> BatchNorm:
    return build(input, weight, bias, running_mean, running_var, training, eps)


@reads("aten.cudnn_batch_norm.default", "aten.miopen_batch_norm.default")
def cudnn_batch_norm(
    input: Any,
    weight,
    bias,
    running_mean,
    running_var,
    training: bool,
    exponential_average_factor: float,
    epsilon: float,
) -> tuple[BatchNorm, None, None, None]:
    return build(input, weight, bias, running_mean, running_var, training, epsilon), None, None, None


@reads("onnx.BatchNormalization")
def onnx_batch_normalization(
    X: Argument,
    scale: Argument,
    B: Argument,
    input_mean: Argument,
    input_var: Argument,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> BatchNorm:
    return build(X, scale, B, input_mean, input_var, bool(training_mode), epsilon)


class FoldedNorm(nn.Identity):
    """Stands where a batch norm was: passes its input on, and shows a neutral norm to code that asks for one.

    Weight 1, bias 0, mean 0, variance 1 and eps 0, whatever that of the norm was: ``1 / sqrt(1 + 0)`` is 1 in every dtype that the buffers
    are cast to and back from, so whoever folds it once more folds an identity. None of it is saved.
    """

    def __init__(self, channels: int, like: Tensor | None) -> None:
        super().__init__()
        options = {} if like is None else {"dtype": like.dtype, "device": like.device}
        self.num_features, self.eps = channels, 0.0
        self.register_buffer("weight", torch.ones(channels, **options), persistent=False)
        self.register_buffer("bias", torch.zeros(channels, **options), persistent=False)
        self.register_buffer("running_mean", torch.zeros(channels, **options), persistent=False)
        self.register_buffer("running_var", torch.ones(channels, **options), persistent=False)


@torch.no_grad()
def restate(norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, var: Tensor) -> None:
    """Give a norm other statistics and the scale and shift with which it stays the same map in evaluation.

    ``gamma' = s * sqrt(var' + eps)``, ``beta' = t + s * mean'`` where the norm is ``s * x + t``.

    Raises:
        ValueError: it has no learnt scale and shift, or no statistics.
    """
    if norm.weight is None or norm.running_mean is None or norm.running_var is None:
        raise ValueError("a norm without statistics, or without a learnt scale and shift, cannot be restated")
    now = BatchNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps).affine(
        norm.num_features
    )
    scale, shift = now.weight.flatten(), now.bias
    mean, var = mean.to(scale), var.to(scale)
    assert shift is not None
    norm.weight.copy_(scale * torch.sqrt(var + norm.eps))
    norm.bias.copy_(shift + scale * mean)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)


def statistics(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor | None, Tensor | None]:
    """Running mean and variance, (C,) each, None where there is none."""
    return norm.running_mean, norm.running_var


Update: TypeAlias = Callable[
    [list[Tensor], list[Tensor], Tensor, Tensor, list[int], list[float], float], None
]
"""Of running means and variances in turn, counters, what was seen, its rows, momenta, and M / (M - 1)."""


class Running:
    """What norms remember of their batches: ``running = momentum * seen + (1 - momentum) * running``, momentum 1 / batches where None.

    Norms without statistics remember nothing. No norm comes twice.
    """

    def __init__(self, norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> None:
        learning = [(row, norm) for row, norm in enumerate(norms) if norm.track_running_stats]
        self._counters: list[Tensor] = []
        self._odd_counters: list[Tensor] = []
        self._rows: list[int] = []
        self._tensors: list[Tensor] = []
        self._norms: list[nn.modules.batchnorm._BatchNorm] = []
        for row, norm in learning:
            mean, variance = statistics(norm)
            if (counter := norm.num_batches_tracked) is not None:
                usual = counter.dtype is torch.int64 and counter.numel() == 1
                alike = usual and mean is not None and counter.device == mean.device
                (self._counters if alike else self._odd_counters).append(counter)
            if mean is not None and variance is not None:
                self._rows.append(row)
                self._tensors += mean, variance
                self._norms.append(norm)

    @torch.no_grad()
    def track(self, mean: Tensor, variance: Tensor, count: int, update: Update | None = None) -> None:
        """One more batch of ``count`` values, with this mean and variance over all of them, (norms, C) each; by ``update``, if any."""
        momenta = [_momentum(norm) for norm in self._norms]
        for counter in self._odd_counters:
            counter.add_(1)
        given = self._tensors, self._counters, mean, variance, self._rows, momenta, count / (count - 1)
        (update or _update)(*given)


def _momentum(norm: nn.modules.batchnorm._BatchNorm) -> float:
    """For the next batch."""
    if norm.momentum is None and norm.num_batches_tracked is not None:
        return 1 / (1 + float(norm.num_batches_tracked))
    return norm.momentum or 0.0


def _update(
    running: list[Tensor],
    counters: list[Tensor],
    mean: Tensor,
    variance: Tensor,
    rows: list[int],
    momenta: list[float],
    unbiased: float,
) -> None:
    if counters:
        torch.ops.aten._foreach_add_.Scalar(counters, 1)
    if not running:
        return
    given = (mean.to(running[0].dtype).unbind(), (variance * unbiased).to(running[0].dtype).unbind())
    seen = [part[row] for row in rows for part in given]
    shares = [momentum for momentum in momenta for _ in given]
    torch.ops.aten._foreach_mul_.ScalarList(running, [1 - share for share in shares])
    torch.ops.aten._foreach_add_.List(running, torch.ops.aten._foreach_mul.ScalarList(seen, shares))
