"""Numbers for symbolic sizes.

A program with dynamic shapes is planned on numbers: the example's own, where costs are concerned. What *folds* must not depend on them, so
the graph is read a second time with other numbers, and only what holds for both is believed.
"""

from typing import Any

import sympy
import torch
from torch.fx import Node

PRIMES = (3, 5, 7, 11, 13, 17, 19, 23)
"""What the second reading multiplies each symbol by: another factor for each, so equal sizes come apart and divisibility is kept."""

UNKNOWN = 16
"""The number of a symbol whose value no example tells."""


def expression(size: int | torch.SymInt) -> sympy.Expr:
    """A size as an expression in the program's symbols."""
    form = size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
    assert isinstance(form, sympy.Expr)
    return form


def difference(a: int | torch.SymInt, b: int | torch.SymInt) -> int | None:
    """``a - b``, where it is the same whatever the sizes are."""
    gap = sympy.expand(expression(a) - expression(b))
    return int(gap) if gap.is_Integer else None


class Numbers:
    """One integer for every symbolic size: the example's, or, with ``spread``, others in which equal sizes come apart."""

    def __init__(self, placeholders: list[Node], spread: bool = False) -> None:
        self.spread = spread
        self.symbols: dict[sympy.Symbol, int] = {}
        self.known: dict[sympy.Expr, int] = {}
        for node in placeholders:
            value = node.meta["val"]
            if isinstance(value, torch.Tensor):
                for size in value.shape:
                    self._learn(size)

    @property
    def is_static(self) -> bool:
        """The inputs have no symbolic size."""
        return not self.symbols

    def _learn(self, size: Any) -> None:
        if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
            hint = size.node.hint if size.node.has_hint() else None
            self._assign(size.node.expr, hint if isinstance(hint, int) else UNKNOWN)

    def _assign(self, symbol: sympy.Symbol, number: int) -> None:
        if symbol not in self.symbols:
            factor = PRIMES[len(self.symbols) % len(PRIMES)] if self.spread else 1
            self.symbols[symbol] = number * factor

    def __call__(self, size: int | torch.SymInt) -> int:
        """The integer that stands for ``size``."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        form = expression(size)
        if form not in self.known:
            for symbol in sorted(form.free_symbols, key=str):
                assert isinstance(symbol, sympy.Symbol)
                self._assign(symbol, UNKNOWN)
            number = form.xreplace({s: sympy.Integer(n) for s, n in self.symbols.items()})
            assert isinstance(number, sympy.Expr)
            self.known[form] = int(number)
        return self.known[form]
