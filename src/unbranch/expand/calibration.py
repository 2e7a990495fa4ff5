"""Make an expanded network the same function in training mode: give its new norms the statistics of real batches."""

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbranch.blocks.block import scale_of
from unbranch.expand.expanded import Expanded
from unbranch.frontends.modules import arguments, unwrap
from unbranch.frontends.modules.trees import tensors_of
from unbranch.ops.batch_norm import restate


@dataclass
class _Moments:
    """Count, mean and sum of squared deviations per channel, merged batch by batch (Chan et al., 1979)."""

    count: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def see(self, x: Tensor) -> "_Moments":
        """One more batch (N, C, *size); an empty one says nothing."""
        if not x.numel():
            return self
        flat = x.detach().double().transpose(0, 1).flatten(1)
        count, mean = flat.shape[1], flat.mean(1)
        gap = mean - self.mean
        total = self.count + count
        self.squares = (
            self.squares + ((flat - mean[:, None]) ** 2).sum(1) + gap**2 * (self.count * count / total)
        )
        self.mean = self.mean + gap * (count / total)
        self.count = total
        return self

    def known(self) -> tuple[Tensor, Tensor]:
        """Mean and variance per channel."""
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.squares, Tensor)
        return self.mean, self.squares / self.count


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Give the norms of expanded layers the statistics with which branches train as the plain layer did, and stay the same map.

    A norm ``s x + t`` that sees variance ``var`` becomes ``gamma' = s sqrt(var' + eps)``, ``beta' = t + s mean'``: in eval mode nothing
    changes. In training mode, on a batch like these, ``var' = g**2 (var + eps) - eps`` with the plain norm's own gain g makes the layer
    what the plain convolution and its norm make of it. Where there was no norm, or the recipe adds something that no norm ends (as
    RepMixer the input), g = 1 and it is what eval mode makes of it. The border inside a diverse branch block follows the running
    statistics, so there the two agree but for the edge. A layer that the network calls several times is calibrated on all calls
    together and normalises each by itself in training, so there the two agree only where its calls are alike.

    Args:
        model: With layers fresh from `expand_`; its mode is kept, and so are the statistics of all other norms. It runs as the plain
            network would in training, but for dropout and the like.
        batches: Each one tensor, a sequence of arguments or a mapping, as for `reparameterize`; empty ones are passed over.

    Returns:
        How many norms were calibrated; a recipe without norms trains as it is.

    Raises:
        ValueError: no batch, no expanded layer, or batches that a layer makes numbers of that are not finite; the model is unchanged.
        TypeError: no batches but one tensor or something else, or more in a batch than the model takes.
    """
    _check_batches(batches)
    paths = {module: path or "the model" for path, module in model.named_modules()}
    layers = [layer for layer in model.modules() if isinstance(layer, Expanded)]
    norms = [norm for layer in layers for norm in layer.modules() if isinstance(norm, _BatchNorm)]
    if not layers:
        raise ValueError("the model has no expanded layer to calibrate: call expand_(model) first")
    moments = {id(module): _Moments() for module in (*norms, *layers)}

    def watch_norm(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        if (
            id(norm) in moments
        ):  # a copy, as a look at the layer's weight makes, has the hooks of what it was made of
            moments[id(norm)].see(args[0])

    def watch_layer(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        moments[id(layer)].see(output)
        assert isinstance(layer, Expanded)
        return _as_plain(layer, output)

    handles = [norm.register_forward_pre_hook(watch_norm) for norm in norms]
    handles += [layer.register_forward_hook(watch_layer) for layer in layers]
    try:
        with _normalising(model, layers):
            for batch in batches:
                args, kwargs = _call_of(model, batch)
                given = list(tensors_of((args, kwargs)))
                if not given or any(tensor.numel() for tensor in given):
                    model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        _check_seen(paths[layer], [moments[id(m)] for m in layer.modules() if id(m) in moments])
    for layer in layers:
        _restate(layer, moments)
    return len(norms)


def _check_batches(batches: Any) -> None:
    if isinstance(batches, Tensor):
        raise TypeError(
            "batches is one tensor, which would be taken apart: pass a list of batches, such as [x]"
        )
    if isinstance(batches, str | bytes | Mapping) or not isinstance(batches, Iterable):
        raise TypeError(f"batches is a {type(batches).__name__}: pass a list of batches, such as [x]")


def _call_of(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that a batch stands for, which the model's forward can be called with."""
    if isinstance(batch, str | bytes) or not isinstance(batch, Tensor | Sequence | Mapping):
        raise TypeError(
            f"a batch is a {type(batch).__name__}: pass a tensor, a sequence of arguments or a mapping of them"
        )
    args, kwargs = arguments(batch)
    inner, _ = unwrap(model)
    try:
        inspect.signature(inner.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"a batch of {len(args) + len(kwargs)} values is no call of {type(inner).__name__} ({error}): pass what the model takes alone, "
            "such as ((images,) for images, labels in loader)"
        ) from error
    return args, kwargs


def _check_seen(path: str, moments: list[_Moments]) -> None:
    """Statistics can be made of what a layer saw."""
    if any(seen.count < 2 for seen in moments):
        raise ValueError(
            f"calibration needs at least one batch that reaches every expanded layer with two values a channel or more: {path} saw none"
        )
    if not all(bool(torch.isfinite(numbers).all()) for seen in moments for numbers in seen.known()):
        raise ValueError(f"{path} saw, or made, numbers that are not finite: look for them in the batches")


def _as_plain(layer: Expanded, output: Tensor) -> Tensor:
    """What the plain convolution and its norm would make of this batch in training."""
    plain = layer.plain_norm
    if plain is None or not layer.last_norms() or not output.numel():
        return output
    mean, variance = _Moments().see(output).known()
    shape = (-1, *(1,) * (output.ndim - 2))
    gain = plain.gain(variance).to(output).reshape(shape)
    return (output - mean.to(output).reshape(shape)) * gain + plain.mean.to(output).reshape(shape)


@contextmanager
def _normalising(model: nn.Module, layers: list[Expanded]) -> Iterator[None]:
    """Everything in eval mode but the norms outside the layers, which use each batch's statistics and keep their own."""
    within = {id(module) for layer in layers for module in layer.modules()}
    outside = [m for m in model.modules() if isinstance(m, _BatchNorm) and id(m) not in within]
    modes = {module: module.training for module in model.modules()}
    kept = [(norm, norm.momentum, [buffer.clone() for buffer in norm.buffers()]) for norm in outside]
    try:
        model.eval()
        for norm in outside:
            norm.training = modes[norm] or not any(modes.values())
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum, buffers in kept:
            norm.momentum = momentum
            for buffer, value in zip(norm.buffers(), buffers, strict=True):
                buffer.copy_(value)
        for module, training in modes.items():
            module.training = training


def _restate(layer: Expanded, moments: dict[int, _Moments]) -> None:
    """New statistics for a layer's norms: those that end its branches get the plain norm's gain, the main one its mean."""
    ends, plain = layer.last_norms(), layer.plain_norm
    mean, variance = moments[id(layer)].known()
    for norm in layer.modules():
        if not isinstance(norm, _BatchNorm):
            continue
        seen_mean, seen_variance = moments[id(norm)].known()
        if ends and norm not in ends:
            # The norm that ends the branch takes the mean out. Kept in the shift, it would cancel what this one makes of zeros, which
            # is what a border is filled with, down to its rounding error.
            seen_mean = torch.zeros_like(seen_mean)
        elif ends and plain is not None:
            seen_variance = plain.gain(variance) ** 2 * (seen_variance + norm.eps) - norm.eps
            seen_variance = seen_variance.clamp_min(0)
            if norm is ends[0]:
                sample = seen_mean.new_ones((len(seen_mean), 1, *(1,) * len(layer.kernel_size)))
                scale = scale_of(copy.deepcopy(norm).eval(), sample.to(norm.weight)).to(seen_mean)
                seen_mean = seen_mean + torch.where(scale == 0, 0.0, (plain.mean.to(mean) - mean) / scale)
        restate(norm, seen_mean, seen_variance)
