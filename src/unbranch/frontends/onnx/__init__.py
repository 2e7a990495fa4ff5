"""ONNX models, in a file or in memory: read, folded, written and verified."""

from unbranch.frontends.onnx.errors import OnnxError
from unbranch.frontends.onnx.files import load_onnx, save_onnx
from unbranch.frontends.onnx.folding import Where, explain_onnx, reparameterize_onnx
from unbranch.frontends.onnx.inputs import OnnxInputs
from unbranch.frontends.onnx.verifying import verify_onnx

__all__ = [
    "OnnxError",
    "OnnxInputs",
    "Where",
    "explain_onnx",
    "load_onnx",
    "reparameterize_onnx",
    "save_onnx",
    "verify_onnx",
]
