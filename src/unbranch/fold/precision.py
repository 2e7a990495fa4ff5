"""Float32 computed in float32, whatever the process allows: networks are compared by their maths, not by a shorter format's rounding."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch

Setting = tuple[str, str]
PARENTS: tuple[Setting, ...] = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
"""What ops inherit that have no setting of their own."""
OPS: tuple[Setting, ...] = tuple((of, op) for of in ("cuda", "mkldnn") for op in ("matmul", "conv", "rnn"))
T = TypeVar("T")


def precision_of(setting: Setting) -> str:
    """What holds for it, its own or inherited: "none" is torch's default, which for products is float32 itself."""
    return torch._C._get_fp32_precision_getter(*setting)


def _set(setting: Setting, value: str) -> None:
    torch._C._set_fp32_precision_setter(*setting, value)


class _Saved:
    """All settings as they were. Parents are made neutral on the way, so that what is read behind them is each one's own."""

    def __init__(self) -> None:
        # Torch has two older settings beside: of convolutions on GPUs, and of products.
        self.convolutions = _asked(torch._C._get_cudnn_allow_tf32, precision_of(("cuda", "conv")) == "tf32")
        self.products = _asked(torch.get_float32_matmul_precision, _products())
        self.own: list[tuple[Setting, str]] = []
        for setting in (*PARENTS, *OPS):
            self.own.append((setting, precision_of(setting)))
            if setting in PARENTS:
                _set(setting, "none")

    def restore(self) -> None:
        """The older ones first, for they write to the others."""
        _set_older(self.convolutions, self.products)
        for setting, value in reversed(self.own):
            _set(setting, value)


def _asked(ask: Callable[[], T], otherwise: T) -> T:
    """Torch raises for the older settings where the newer ones say something else."""
    try:
        return ask()
    except RuntimeError:
        return otherwise


def _products() -> str:
    if precision_of(("mkldnn", "matmul")) == "bf16":
        return "medium"
    return "high" if precision_of(("cuda", "matmul")) == "tf32" else "highest"


def _set_older(convolutions: bool, products: str) -> None:
    torch._C._set_cudnn_allow_tf32(convolutions)
    torch.set_float32_matmul_precision(products)


class _Holders:
    """The settings are the whole process's: who comes first changes them, and who leaves last puts them back."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.count = 0
        self.saved: _Saved | None = None

    def enter(self) -> None:
        with self.lock:
            if self.saved is None:
                self.saved = _Saved()
                _set_older(False, "highest")
                for setting in OPS:
                    _set(setting, "ieee")
            self.count += 1

    def leave(self) -> None:
        with self.lock:
            self.count -= 1
            if self.count == 0 and self.saved is not None:
                self.saved.restore()
                self.saved = None


_HOLDERS = _Holders()


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 and no bfloat16 inside convolutions and products of float32 on CPUs and NVIDIA GPUs; the settings again afterwards.

    On GPUs torch lets convolutions round to TF32 by default. Settings of both of torch's generations are changed alike: where they differ,
    torch raises for whoever asks for the older ones, and code that is run meanwhile may ask.

    Example:
        >>> with full_precision():
        ...     torch.backends.cudnn.allow_tf32
        False
    """
    _HOLDERS.enter()
    try:
        yield
    finally:
        _HOLDERS.leave()


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Products of float32 in float32 on this device: as ``full_precision``, at no cost where nothing else is allowed."""
    allowed = precision_of(("cuda" if device.type == "cuda" else "mkldnn", "matmul"))
    if allowed == "none" or (allowed == "ieee" and _HOLDERS.saved is None):
        yield
        return
    with full_precision():
        yield
