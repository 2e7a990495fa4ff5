"""Training a detector: what is asked for, one batch, one epoch, and everything that is left behind."""

from unbranch.detect.training.run import TrainResult, train
from unbranch.detect.training.settings import Settings

__all__ = ["Settings", "TrainResult", "train"]
