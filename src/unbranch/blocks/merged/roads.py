"""How a merged convolution is computed: step by step on any windows, or in one compiled call each way. The same maths: ``fold``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from unbranch.blocks.merged.compiled import kernels, unavailable
from unbranch.blocks.merged.fold import Fold, Folded, Gradients, Moments, fold, unfold
from unbranch.blocks.merged.function import Remembered
from unbranch.blocks.merged.twice import branched
from unbranch.blocks.merged.windows import Taps, Windows

Reader = Callable[[Tensor, Tensor | None], Windows]
"""Windows of a tensor, for a mean that is known already or to be found."""


@dataclass(frozen=True, eq=False)
class Stepwise:
    """Any windows: their sums one after the other, the fold between them compiled where it can be."""

    how: Fold
    read: Reader

    def forward(
        self, x: Tensor, y: Tensor, parameters: Sequence[Tensor | None]
    ) -> tuple[Remembered, Tensor, Tensor]:
        """See ``Road``."""
        windows = self.read(x, None)
        covariance = windows.covariance()
        made = self._fold(windows.mean, covariance, parameters, x)
        windows.convolve(made.weight, made.offset, y)
        # S w, or S, from which it follows, where it would be more to keep than a convolution's output.
        keeps_covariance = covariance.numel() < made.seen.numel() > y.numel()
        kept = Remembered(windows.mean, covariance if keeps_covariance else made.seen, made.inverse)
        return kept, made.mean, made.variance

    def backward(
        self,
        x: Tensor,
        g: Tensor,
        kept: Remembered,
        parameters: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """See ``Road``."""
        windows = self.read(x, kept.mean)
        product, total = (part.to(kept.mean.dtype) for part in windows.kernel_grad(g))
        found = self._unfold(kept, product, total, parameters, needed, x)
        if (moments := found.moments) is None:
            return None, found.parameters
        quadratic = moments.covariance.mul_(2 / windows.count)
        dx = windows.input_grad(g, moments.weight, moments.mean.div_(windows.count), quadratic)
        return dx, found.parameters

    def branched(self, x: Tensor, parameters: Sequence[Tensor | None]) -> Tensor:
        """See ``Road``."""
        return branched(self.how, x, parameters)

    def _fold(
        self, mean: Tensor, covariance: Tensor, parameters: Sequence[Tensor | None], x: Tensor
    ) -> Folded:
        if not has_kernels(x):
            return fold(self.how, mean, covariance, parameters)
        terms = _terms(self.how, parameters)
        return Folded(*kernels(x.dtype).fold(mean, covariance, *terms, self.how.outputs, self.how.eps))

    def _unfold(
        self,
        kept: Remembered,
        product: Tensor,
        total: Tensor,
        parameters: Sequence[Tensor | None],
        needed: Sequence[bool],
        x: Tensor,
    ) -> Gradients:
        if not has_kernels(x):
            return unfold(self.how, parameters, kept, product, total, needed, x.dtype)
        spread = (kept.spread, kept.is_covariance, kept.inverse)
        made = kernels(x.dtype).unfold(
            *spread, product, total, *_terms(self.how, parameters), needed[1:], needed[0]
        )
        return Gradients(_placed(made, needed[1:]), Moments(*made[-3:]) if needed[0] else None)


@dataclass(frozen=True, eq=False)
class Whole:
    """Rows of a matrix, or depthwise windows of pictures (N, H, W, C), in one compiled call each way."""

    how: Fold
    taps: Taps | None = None

    def forward(
        self, x: Tensor, y: Tensor, parameters: Sequence[Tensor | None]
    ) -> tuple[Remembered, Tensor, Tensor]:
        """See ``Road``."""
        terms = (*_terms(self.how, parameters), self.how.eps)
        if self.taps is None:
            made = kernels(x.dtype).rows_forward(x, y, self.how.groups, *terms)
        else:
            made = kernels(x.dtype).pictures_forward(x, y, *self.taps, *terms)
        return Remembered(*made[:3]), made[3], made[4]

    def backward(
        self,
        x: Tensor,
        g: Tensor,
        kept: Remembered,
        parameters: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """See ``Road``."""
        given = (x, g, kept.mean, kept.spread, kept.inverse)
        terms = (*_terms(self.how, parameters), needed[1:], needed[0])
        if self.taps is None:
            made = kernels(x.dtype).rows_backward(*given, *terms)
        else:
            made = kernels(x.dtype).pictures_backward(*given, *self.taps, *terms)
        return made[-1] if needed[0] else None, _placed(made, needed[1:])

    def branched(self, x: Tensor, parameters: Sequence[Tensor | None]) -> Tensor:
        """See ``Road``."""
        return branched(self.how, x, parameters, self.taps)


def has_kernels(like: Tensor) -> bool:
    """Whether compiled calls take a tensor like this."""
    return like.device.type == "cpu" and unavailable(like.dtype) is None


def _terms(how: Fold, parameters: Sequence[Tensor | None]) -> tuple[object, ...]:
    return parameters, *how.places, how.bare


def _placed(made: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    """The gradients that were needed, each in its parameter's place."""
    found = iter(made)
    return [next(found) if need else None for need in needed]
