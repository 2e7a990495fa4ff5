"""What stands where a norm was: neutral to whoever folds it once more, in whatever dtype it has been meanwhile."""

import pytest
import torch
from torch import nn

import unbranch
from tests.support import fold_error, randomize
from unbranch.ops.batch_norm import FoldedNorm


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_is_neutral_after_any_round_trip(dtype: torch.dtype, generator: torch.Generator) -> None:
    """As ultralytics does: a checkpoint in half precision, made float again and fused, ``w * gamma / sqrt(eps + var)``."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU()).double().eval()
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64, generator=generator)
    folded = unbranch.reparameterize(randomize(net, generator, x), x)
    norm = folded.get_submodule("1")
    assert isinstance(norm, FoldedNorm)
    for wide in (torch.float32, torch.float64):
        own = dict(norm.to(dtype).to(wide).named_buffers())
        scale = own["weight"] / torch.sqrt(norm.eps + own["running_var"])
        shift = own["bias"] - own["running_mean"] * scale
        assert torch.equal(scale, torch.ones(8, dtype=wide))
        assert torch.equal(shift, torch.zeros(8, dtype=wide))
    assert not norm.state_dict()
    assert fold_error(folded(x), net(x)) <= 1e-10
