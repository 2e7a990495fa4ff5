"""Checkpoints, our own and other people's: read safely, recognised, loaded whole or not at all."""

from unbranch.checkpoints.errors import CheckpointError
from unbranch.checkpoints.load import LoadResult, load

__all__ = ["CheckpointError", "LoadResult", "load"]
