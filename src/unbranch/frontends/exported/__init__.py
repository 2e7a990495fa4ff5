"""Exported programs: `torch.export.ExportedProgram` in, the same out, `.pt2` files included."""

from unbranch.frontends.exported.files import ProgramFileError, load_exported, save_exported, saved
from unbranch.frontends.exported.folding import Where, explain_exported, reparameterize_exported
from unbranch.frontends.exported.verifying import verify_exported

__all__ = [
    "ProgramFileError",
    "Where",
    "explain_exported",
    "load_exported",
    "reparameterize_exported",
    "save_exported",
    "saved",
    "verify_exported",
]
