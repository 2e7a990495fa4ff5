"""Branches for a trained plain network: the same function in both modes, learnt on with, and folded back."""

import copy

import torch
from torch import nn

import unbranch
from unbranch.expand import parameter_groups

torch.manual_seed(0)
images = torch.randn(16, 3, 32, 32)
layers = (
    nn.Conv2d(3, 16, 3, 2, 1, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Conv2d(16, 16, 3, 1, 1),
    nn.ReLU(),
)
plain = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
with torch.no_grad():
    for _ in range(20):
        plain.train()(images)  # stands for the training that it has behind it

wide = unbranch.expand(plain.eval(), "dbb", images)
unbranch.calibrate(wide, [images])
with torch.no_grad():
    evaluating = (wide(images) - plain(images)).abs().max()
    training = (copy.deepcopy(wide).train()(images) - copy.deepcopy(plain).train()(images)).abs().max()
print(f"with branches: {evaluating:.1e} apart in eval mode, {training:.1e} in training mode")
assert evaluating < 1e-5
assert training < 1e-2

optimizer = torch.optim.SGD(parameter_groups(wide, lr=0.01, branch_lr=0.05), momentum=0.9)
for _ in range(5):
    optimizer.zero_grad()
    nn.functional.cross_entropy(wide.train()(images), torch.arange(16) % 4).backward()
    optimizer.step()

folded = unbranch.reparameterize(wide.eval(), images)
with torch.no_grad():
    print(
        f"folded after training: {(folded(images) - wide(images)).abs().max():.1e} apart, {len(list(folded.parameters()))} tensors"
    )
    assert (folded(images) - wide(images)).abs().max() < 1e-5
