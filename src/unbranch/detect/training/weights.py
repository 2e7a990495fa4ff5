"""Start from a trained network of another shape or with other classes: what fits is taken."""

from typing import Any

import torch

from unbranch.detect.errors import InputError
from unbranch.models.yolo import YOLO


@torch.no_grad()
def take_weights(network: YOLO[Any], source: YOLO[Any], where: str) -> str:
    """Copy every tensor of `source` that `network` has under the same name and shape; say how many in one
    line.

    Anchors are the data set's, so they stay. Raises InputError where nothing fits.
    """
    given, own = source.state_dict(), network.state_dict()
    fitting = [
        name
        for name in own
        if name in given and given[name].shape == own[name].shape and name != "detect.anchors"
    ]
    if not fitting:
        raise InputError(f"{where}: none of its tensors fits this network; it is another network")
    for name in fitting:
        own[name].copy_(given[name])
    return f"{where}: {len(fitting)} of {len(own)} tensors taken"
