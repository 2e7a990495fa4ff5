"""MobileOne's block."""

from unbranch.blocks.repvgg import RepVGGBlock


class MobileOneBlock(RepVGGBlock):
    """y = act(se(sum_b norm(w_b * x) + norm(w_1 * x) + norm(x)))  (Vasu et al., 2023, arXiv:2206.04040).

    RepVGG's sum with ``num_branches`` kxk convolutions; a MobileOne layer is one of these depthwise
    (``groups=in_channels``) and one pointwise (``kernel_size=1``). Options, shapes and errors are
    ``RepVGGBlock``'s.

    >>> MobileOneBlock(16, 16, groups=16, num_branches=4)(torch.ones(1, 16, 7, 5)).shape
    torch.Size([1, 16, 7, 5])
    """
