"""Train with branches, ship without them: structural re-parameterization for PyTorch."""

__version__ = "0.1.0"
