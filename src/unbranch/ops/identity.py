"""Ops that return their operand: copies, aliases, and dropout in evaluation."""

from unbranch.affine import NotLinear
from unbranch.ops.table import Identity, Operand, operand, reads


def _dropped(x: Operand, p: float, train: bool) -> Identity:
    operand(x, "the input")
    if train and p:
        raise NotLinear("dropout in training")
    return Identity()


@reads("aten.alias.default", "aten.detach.default", "aten.detach_.default", "aten.lift_fresh.default")
def alias(self: Operand) -> Identity:
    operand(self, "the input")
    return Identity()


@reads("aten.clone.default", "aten.contiguous.default")
def clone(self: Operand, *, memory_format=None) -> Identity:
    operand(self, "the input")
    return Identity()


@reads(
    "aten.dropout.default",
    "aten.dropout_.default",
    "aten.feature_dropout.default",
    "aten.feature_dropout_.default",
    "aten.alpha_dropout.default",
    "aten.feature_alpha_dropout.default",
)
def dropout(input: Operand, p: float, train: bool) -> Identity:
    return _dropped(input, p, train)


@reads("aten.native_dropout.default")
def native_dropout(input: Operand, p: float, train: bool | None) -> tuple[Identity, None]:
    return _dropped(input, p, bool(train)), None
