"""The folded copy has memory of its own, whatever of it folded."""

import torch
from torch import Tensor, nn

from tests.frontends.modules.checks import SMALL, conv_norm, drawn, x_of
from unbranch import reparameterize


class Tied(nn.Module):
    """Something folds; a head that does not is tied, and held in a list beside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_norm()
        self.head, self.twin = nn.Linear(9, 9), nn.Linear(9, 9)
        self.twin.weight = self.head.weight
        self.weights = [self.head.weight]
        self.scale = nn.Parameter(torch.ones(4, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.body(x)) * torch.sigmoid(self.scale)
        return self.twin(torch.relu(self.head(y)))


def test_writing_into_the_copy_leaves_the_model_as_it_was() -> None:
    for model in (drawn(Tied()), drawn(nn.Sequential(nn.ReLU(), nn.Linear(9, 4)))):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        folded = reparameterize(model, x_of(*SMALL))
        with torch.no_grad():
            for tensor in (*folded.parameters(), *folded.buffers()):
                tensor.fill_(7)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_ties_and_what_is_held_beside_survive() -> None:
    model = drawn(Tied())
    folded = reparameterize(model, x_of(*SMALL))
    assert folded.head.weight is folded.twin.weight is folded.weights[0]
    assert folded.head.weight is not model.head.weight
    assert not folded.scale.requires_grad
    assert folded.head.weight.requires_grad
