"""Modules in torch, each ready as a call without arguments."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unbranch.runtimes.timing import Run


def torch_run(module: nn.Module, inputs: Sequence[Tensor]) -> Run:
    """The module on ``inputs``. A call is over when its result is there: a GPU works on after torch has returned."""
    tensors = (*module.parameters(), *module.buffers(), *inputs)
    accelerator = torch.accelerator.current_accelerator()
    kind = None if accelerator is None else accelerator.type
    beside = {tensor.device for tensor in tensors if tensor.device.type == kind}

    def run() -> object:
        with torch.inference_mode():
            result = module(*inputs)
        for device in beside:
            torch.accelerator.synchronize(device)
        return result

    return run
