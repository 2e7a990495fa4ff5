"""What may be folded at all: the model inside its wrappers, in eval mode, outside of autocast."""

import torch
from torch import nn

from unbranch.frontends.modules.trees import each_module

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrap(model: nn.Module) -> tuple[nn.Module, str | None]:
    """The model inside a parallel or compiled wrapper, and the wrapper's name."""
    names = []
    while True:
        if isinstance(model, WRAPPERS):
            names.append(type(model).__name__)
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            names.append("torch.compile")
            model = model._orig_mod
        else:
            return model, ", ".join(names) or None


def check_foldable(model: nn.Module) -> None:
    """Refuse what no fold is right for.

    Raises:
        ValueError: training mode, or autocast is on.
    """
    if any(map(_is_training, each_module(model))):
        path, module = next((path, module) for path, module in model.named_modules() if _is_training(module))
        where = f"{path} ({type(module).__name__})" if path else f"the model ({type(module).__name__})"
        raise ValueError(
            f"{where} is in training mode, where norms use the batch's statistics: call model.eval() first"
        )
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            raise ValueError(
                f"autocast is on for {device}, so the recorded dtypes would not be the model's: fold outside of it"
            )


def _is_training(module: nn.Module) -> bool:
    try:
        return module.training
    except AttributeError:  # scripted and frozen: it was in eval mode then, and has no mode any more
        return False
