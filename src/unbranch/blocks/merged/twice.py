"""Merged branches written out one by one: the way of gradients that are differentiated again, or taken many at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unbranch.blocks.merged.fold import Fold
from unbranch.blocks.merged.windows import Taps


def branched(how: Fold, x: Tensor, parameters: Sequence[Tensor | None], taps: Taps | None = None) -> Tensor:
    """sum_b norm_b(w_b * x), (M, C_out), by steps that torch differentiates as often as it is asked; x as its road reads it."""
    patches = _patches(how, x, taps)
    parts = torch.einsum("gmd,gtod->gtmo", patches, how.rows(parameters, patches))
    if how.bare:
        parts = torch.cat([parts, patches.unsqueeze(1).expand(-1, how.bare, -1, -1)], 1)
    centred = parts - parts.mean(2, keepdim=True)
    eps = patches.new_tensor(how.eps).view(-1, 1, 1)
    normed = centred * torch.rsqrt(centred.square().mean(2, keepdim=True) + eps)
    gamma, beta = (
        how.by_term(parameters[first::3], missing, patches).unsqueeze(2)
        for first, missing in ((1, 1.0), (2, 0.0))
    )
    return (normed * gamma + beta).sum(1).transpose(0, 1).flatten(1)


def _patches(how: Fold, x: Tensor, taps: Taps | None) -> Tensor:
    """(G, M, D)."""
    if taps is not None:
        return _pictures(x, taps)
    if x.ndim == 3:
        return x.unflatten(1, (how.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    return x.unflatten(1, (how.groups, -1)).transpose(0, 1)


def _pictures(x: Tensor, taps: Taps) -> Tensor:
    """Of pictures (N, H, W, C), a group for each channel."""
    padding, size = [], x.shape[1:3]
    for n, k, s, d, b, o in zip(size, *taps[:4], taps.out, strict=True):
        padding[:0] = (b, (o - 1) * s + (k - 1) * d + 1 - n - b)
    x = nn.functional.pad(x.movedim(-1, 0), padding)
    for axis, k, s, d in zip((2, 3), *taps[:3], strict=True):
        x = x.unfold(axis, (k - 1) * d + 1, s)[..., ::d]
    return x.flatten(4).flatten(1, 3)
