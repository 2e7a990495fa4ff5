"""Branches that train as one convolution: the same outputs, gradients and running statistics for less work and less memory.

A batch norm behind ``w * x`` needs only its mean and variance over the batch, and both follow from the mean and covariance of the
input's patches, which all branches share.
"""

from unbranch.blocks.merged.plan import Training, TrainingPlan, check_training
from unbranch.blocks.merged.remembered import Plans
from unbranch.blocks.merged.run import run_sum
from unbranch.blocks.merged.terms import any_global_hook, hook_of, plain

__all__ = [
    "Plans",
    "Training",
    "TrainingPlan",
    "any_global_hook",
    "check_training",
    "hook_of",
    "plain",
    "run_sum",
]
