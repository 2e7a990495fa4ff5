"""Modules, folded where they stand: record one run, witness that it holds for other inputs, place convolutions."""

from unbranch.frontends.modules.folding import (
    Where,
    explain_modules,
    reparameterize_copy,
    reparameterize_in_place,
)
from unbranch.frontends.modules.frames import StandIn
from unbranch.frontends.modules.guards import unwrap
from unbranch.frontends.modules.inputs import ExampleInputs, arguments
from unbranch.frontends.modules.recorder import record
from unbranch.frontends.modules.recording import Recording
from unbranch.frontends.modules.whole import to_affine, to_convolution

__all__ = [
    "ExampleInputs",
    "Recording",
    "StandIn",
    "Where",
    "arguments",
    "explain_modules",
    "record",
    "reparameterize_copy",
    "reparameterize_in_place",
    "to_affine",
    "to_convolution",
    "unwrap",
]
