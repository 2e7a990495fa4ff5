"""What every row's process needs, imported once in the process that they fork from."""

import onnx
import timm
import torch
import torch._dynamo
import torch.export
import torch.onnx
import torchvision

from benchmarks.zoo import rows

__all__ = ["onnx", "rows", "timm", "torch", "torchvision"]
