"""Exported programs: `torch.export.ExportedProgram` in, the same out."""

from unbranch.frontends.exported.folding import Where, explain_exported, reparameterize_exported

__all__ = ["Where", "explain_exported", "reparameterize_exported"]
