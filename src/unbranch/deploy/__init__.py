"""Networks as files and in runtimes: weights, ONNX, and how long a run takes, before and after."""

from unbranch.deploy.onnx_file import export_onnx
from unbranch.deploy.weights import save_weights
from unbranch.runtimes.timing import Paired, time_pair

__all__ = ["Paired", "export_onnx", "save_weights", "time_pair"]
