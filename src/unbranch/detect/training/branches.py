"""Trained networks that learn on with branches: weights of any form, layers that are given branches, and their calibration."""

from typing import Any

import torch

from unbranch.detect.data.batches import EvaluationSet
from unbranch.detect.data.check import Split
from unbranch.detect.errors import InputError
from unbranch.detect.forms import example_of, take_form
from unbranch.detect.training.settings import Settings
from unbranch.detect.training.weights import take_weights
from unbranch.detect.validation import network_images
from unbranch.expand import calibrate, expand_
from unbranch.models.yolo import YOLO

CALIBRATING = 64
"""So many pictures tell the new norms what they will see."""


def begin(network: YOLO[Any], source: YOLO[Any] | None, settings: Settings) -> list[str]:
    """Take the weights of `source` and give the layers that the settings name their branches; say what was done.

    Raises InputError where weights are folded and no branches are asked for, where `expand` has no weights to start from, where
    `where` stands without it or names nothing that can have branches, and for a recipe that is not known.
    """
    said: list[str] = []
    if settings.where is not None and settings.expand is None:
        raise InputError(f"where={settings.where!r} chooses layers for expand; name a recipe too")
    if settings.expand is not None and source is None:
        raise InputError(
            f"expand={settings.expand!r} adds branches to a trained network: give its weights; "
            f"a new one has them with network block={settings.expand}"
        )
    if source is not None:
        where = str(settings.weights)
        if source.deployed and settings.expand is None:
            raise InputError(
                f"{where}: in deploy form, and a folded network cannot go back to its branches and norms; "
                "expand gives it new branches to train on"
            )
        take_form(network, source.state_dict(), where)
        said.append(take_weights(network, source, where))
    if settings.expand is not None:
        said.append(_expanded(network, settings))
    return said


def _expanded(network: YOLO[Any], settings: Settings) -> str:
    modes = network.training
    network.eval()
    try:
        done = expand_(network, settings.expand or "", example_of(network), where=settings.where)
    except ValueError as error:
        raise InputError(f"expand: {' '.join(str(error).split())}") from error
    finally:
        network.train(modes)
    new = sum(p.numel() for p in network.parameters())
    return f"{len(done.layers)} layers have {settings.expand} branches now; {new:,} parameters in training"


def calibrated(network: YOLO[Any], split: Split, batch: int) -> str:
    """Give the new norms the statistics of some pictures of the split; say so."""
    batches = EvaluationSet(split, batch, network.stride)
    count = min(len(batches), -(-CALIBRATING // batch))
    chosen = [round(i * (len(batches) - 1) / max(count - 1, 1)) for i in range(count)]
    device = next(network.parameters()).device
    with torch.no_grad():
        norms = calibrate(network, (network_images(batches[i].images, device) for i in chosen))
    return f"{norms} norms of theirs calibrated on {sum(len(batches.batches[i]) for i in chosen)} pictures"
