"""The trained YOLOv5n with branches in its C3 blocks: the same boxes, and in training the same loss."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.detect.photographs import Reference
from unbranch.detect import Detector
from unbranch.detect.letterbox import fill, network_input, place
from unbranch.detect.loss import DetectionLoss, scaled_gains
from unbranch.detect.recipe import Recipe
from unbranch.detect.sources import read_picture
from unbranch.expand import calibrate, expand
from unbranch.models.yolov5 import YOLOv5

WHERE = "*.bottlenecks.*second*"
SIZE = 640


def batch_of(pictures: list[Reference]) -> tuple[Tensor, Tensor]:
    """The photographs as one square batch, and what was found on them as targets."""
    images, targets = [], []
    for index, reference in enumerate(pictures):
        pixels = read_picture(reference.path)
        box = place(*pixels.shape[:2], (SIZE, SIZE), 32, False)
        images.append(network_input(fill(pixels, box)))
        scale = box.inner_rows / pixels.shape[0]
        corners = reference.boxes[:, :4] * scale + torch.tensor([box.left, box.top] * 2)
        centres, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        whose = torch.full((len(corners), 1), float(index))
        targets.append(torch.cat((whose, reference.boxes[:, 5:], centres, sides), 1))
    return torch.from_numpy(np.stack(images)), torch.cat(targets)


@torch.no_grad()
def training_loss(network: YOLOv5, images: Tensor, targets: Tensor) -> float:
    head = network.detect
    gains = scaled_gains(Recipe(), head.num_classes, len(head.strides), SIZE)
    loss = DetectionLoss(head.anchors, head.strides, gains)
    return float(loss(copy.deepcopy(network).train()(images), targets).total)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["repvgg", "dbb", "mobileone"])
def test_branches_in_every_c3(network: YOLOv5, pictures: list[Reference], recipe: str) -> None:
    wide = expand(network, recipe, torch.zeros(1, 3, 64, 64), where=WHERE)
    images, targets = batch_of(pictures)
    expected = training_loss(network, images, targets)
    assert abs(training_loss(wide, images, targets) / expected - 1) > 0.5, "new norms know nothing yet"
    calibrate(wide, [images])
    assert abs(training_loss(wide, images, targets) / expected - 1) < 0.02
    detector = Detector(wide)
    assert "folded" in detector.notes[0]
    for reference in pictures:
        [found] = detector.boxes([read_picture(reference.path)])
        assert found.shape == reference.boxes.shape
        assert float((found[:, :4] - reference.boxes[:, :4]).abs().max()) <= 1.0
        assert float((found[:, 4] - reference.boxes[:, 4]).abs().max()) <= 0.005
        assert torch.equal(found[:, 5], reference.boxes[:, 5])
