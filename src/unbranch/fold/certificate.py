"""The certificate of a fold: before and after run on the same inputs, and how far apart their outputs are."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The largest error of a pass, per dtype; the half types' outputs carry their own rounding through the whole network."""


def fold_error(after: Tensor, before: Tensor) -> float:
    """``max|after - before| / max(1, max|before|)``; 0 for empty tensors, infinite where the shapes differ or one is not finite alone.

    Example:
        >>> fold_error(torch.tensor([2.0, 0.0]), torch.tensor([4.0, 0.0]))
        0.5
    """
    if after.shape != before.shape:
        return float("inf")
    if before.numel() == 0:
        return 0.0
    a, b = (_real(tensor.detach().cpu()).double() for tensor in (after, before))
    gap = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=float("inf"), posinf=float("inf"))
    gap = torch.where(a.isnan() & b.isnan(), 0.0, gap)
    finite = b[b.isfinite()].abs()
    return float(gap.max()) / max(1.0, float(finite.max()) if finite.numel() else 1.0)


def _real(tensor: Tensor) -> Tensor:
    """Real and imaginary parts side by side, where there are both."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def tensors_in(tree: Any, path: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested outputs with its path, such as ``output[0]['boxes']`` or ``output.logits``."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield from tensors_in(item, f"{path}[{key!r}]")
    elif isinstance(tree, list | tuple):
        for position, item in enumerate(tree):
            yield from tensors_in(item, f"{path}[{position}]")
    elif is_dataclass(tree) and not isinstance(tree, type):
        for part in fields(tree):
            yield from tensors_in(getattr(tree, part.name), f"{path}.{part.name}")


@dataclass(frozen=True)
class Check:
    """One output tensor of one run."""

    output: str
    shape: tuple[int, ...]
    dtype: str
    size: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """The error is within the tolerance."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Certificate:
    """The errors of every output, at every size and dtype that was run. ``bool()`` is the verdict, ``str()`` a table.

    ``notes`` says what was not run and why; ``worst_place`` is the folded place with the largest error, where that was asked for.
    """

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    worst_place: str | None = None

    def __bool__(self) -> bool:
        """There were outputs to compare and every one is within its tolerance."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def error(self) -> float:
        """The largest error of all."""
        return max((check.error for check in self.checks), default=float("inf"))

    def __str__(self) -> str:
        head = ("output", "shape", "dtype", "input", "error", "limit", "")
        rows = [
            (
                c.output,
                "x".join(map(str, c.shape)),
                c.dtype,
                c.size,
                f"{c.error:.1e}",
                f"{c.tolerance:.0e}",
                "ok" if c.passed else "FAIL",
            )
            for c in self.checks
        ]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        ]
        lines += [f"note: {note}" for note in self.notes]
        if self.worst_place:
            lines.append(f"worst place: {self.worst_place}")
        lines.append("equal" if self else "NOT EQUAL" if self.checks else "NOT EQUAL: no tensor to compare")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "passed": bool(self),
            "error": self.error,
            "checks": [vars(check) | {"passed": check.passed} for check in self.checks],
            "notes": list(self.notes),
            "worst_place": self.worst_place,
        }
