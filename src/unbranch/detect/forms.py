"""The forms of a detector: as built, with branches that `expand` added, folded; and from one to another where that is exact."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unbranch.checkpoints.match import Target, forms_in_file
from unbranch.detect.errors import InputError
from unbranch.expand import expand_like_
from unbranch.models.yolo import YOLO


def form_of(network: YOLO[Any]) -> str:
    """`"training"`, `"expanded"`, `"deploy"`, or `"mixed"` where some blocks are folded and others are not."""
    target = Target.of(network)
    if network.deployed:
        return "deploy"
    if {"training", "deploy"} <= set(target.blocks.values()):
        return "mixed"
    return "expanded" if target.expanded else "training"


def take_form(network: YOLO[Any], tensors: Mapping[str, Tensor], where: str) -> None:
    """Fold and expand a network as it was built, in place, until it has the form of `tensors`; `where` they come from.

    Its values are then to be overwritten. Raises `InputError` for branches that no recipe makes.
    """
    forms = set(forms_in_file(tensors, Target.of(network)).values())
    training = network.training
    if forms and "training" not in forms:
        network.eval().fuse().train(training)
    try:
        expand_like_(network, tensors, example_of(network))
    except ValueError as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}") from error


def example_of(network: YOLO[Any]) -> Tensor:
    """A small input that the network takes."""
    like = next(network.parameters())
    return torch.zeros(1, 3, 2 * network.stride, 2 * network.stride, dtype=like.dtype, device=like.device)
