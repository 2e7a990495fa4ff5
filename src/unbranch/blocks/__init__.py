"""Training blocks as recipes of branches; ``switch_to_deploy()`` makes each the one convolution it equals."""

from unbranch.blocks.block import Block, BlockOptions, Branches, Sum
from unbranch.blocks.deployable import Deployable
from unbranch.blocks.mobileone import MobileOneBlock
from unbranch.blocks.repvgg import RepVGGBlock
from unbranch.blocks.shortcuts import shortcut_branch
from unbranch.blocks.spec import ConvSpec

__all__ = [
    "Block",
    "BlockOptions",
    "Branches",
    "ConvSpec",
    "Deployable",
    "MobileOneBlock",
    "RepVGGBlock",
    "Sum",
    "shortcut_branch",
]
