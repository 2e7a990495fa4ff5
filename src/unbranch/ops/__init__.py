"""What each op is: one op, one file; ATen and ONNX spellings in one table."""

import importlib
import pkgutil

from unbranch.ops.table import (
    TABLE,
    Concat,
    Identity,
    Map,
    Operand,
    Pad,
    Permute,
    Record,
    Reshape,
    Slice,
    Sum,
    Take,
    Write,
    read,
    reads,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "TABLE",
    "Concat",
    "Identity",
    "Map",
    "Operand",
    "Pad",
    "Permute",
    "Record",
    "Reshape",
    "Slice",
    "Sum",
    "Take",
    "Write",
    "read",
    "reads",
]
