"""A RepVGG block of 512 channels, before and after switch_to_deploy(), and how far apart the two are."""

import torch

from unbranch.blocks import RepVGGBlock

torch.manual_seed(0)
block = RepVGGBlock(512, 512)
x = torch.randn(1, 512, 49, 49)

with torch.no_grad():
    block.train()(x)  # one training step's worth of statistics for the norms
    block.eval()
    before = block(x)
    print("before:", block, sep="\n")

    block.switch_to_deploy()
    after = block(x)
    print("after:", block, sep="\n")

difference = (after - before).abs().max().item()
print(
    f"output {tuple(after.shape)}, largest difference {difference:.1e}, largest output {before.abs().max().item():.1f}"
)
assert difference < 1e-4
