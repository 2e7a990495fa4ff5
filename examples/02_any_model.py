"""Any model: nobody wrote a fold for this block, and it becomes one convolution all the same."""

import torch
from torch import nn

import unbranch


class Mixed(nn.Module):
    """A 3x3, a 1x3 behind a 1x1, an average and the input itself, each with its norm, added up and scaled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.square = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.narrow = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.Conv2d(channels, channels, (1, 3), padding=(0, 1)),
        )
        self.mean = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(channels))
        self.itself = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add up the branches."""
        return torch.relu(0.5 * (self.square(x) + self.narrow(x) + self.mean(x) + self.itself(x)))


torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2), Mixed(32), Mixed(32))
images = torch.randn(8, 3, 65, 65)
with torch.no_grad():
    model.train()(images)
model.eval()

folded, report = unbranch.reparameterize(model, images, return_report=True)
certificate = unbranch.verify(model, folded, images, report=report)
print(report, certificate, folded, sep="\n\n")
assert certificate
