"""Pictures with boxes: three formats read, checked once, cached at training size, served in seeded
batches."""

from unbranch.detect.data.batches import Batch, EvaluationBatch, EvaluationSet, TrainingKeys, TrainingSet
from unbranch.detect.data.check import Labels, Split, check_split, check_splits
from unbranch.detect.data.problems import Problem, Report
from unbranch.detect.data.spec import Spec, open_spec

__all__ = [
    "Batch",
    "EvaluationBatch",
    "EvaluationSet",
    "Labels",
    "Problem",
    "Report",
    "Spec",
    "Split",
    "TrainingKeys",
    "TrainingSet",
    "check_split",
    "check_splits",
    "open_spec",
]
