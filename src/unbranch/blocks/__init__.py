"""Training blocks as recipes of branches; ``switch_to_deploy()`` makes each the one convolution it equals."""

from unbranch.blocks.acnet import ACBlock
from unbranch.blocks.block import Block, BlockOptions, Branches, Sum
from unbranch.blocks.bottleneck import LinearBottleneck
from unbranch.blocks.dbb import DiverseBranchBlock
from unbranch.blocks.deployable import Deployable
from unbranch.blocks.depthwise import RepGhostBlock, RepMixer, RepVGGDW
from unbranch.blocks.edge import EdgeOrientedBlock
from unbranch.blocks.implicit import ImplicitA, ImplicitConv, ImplicitM
from unbranch.blocks.large_kernel import DilatedReparamBlock, RepLKBlock
from unbranch.blocks.merged import TrainingPlan
from unbranch.blocks.mobileone import MobileOneBlock
from unbranch.blocks.orepa import OREPABlock, RepConvOREPA
from unbranch.blocks.qarepvgg import QARepVGGBlock
from unbranch.blocks.repconv import RepConv, RepConvN
from unbranch.blocks.repvgg import RepVGGBlock
from unbranch.blocks.shortcuts import shortcut_branch
from unbranch.blocks.spec import ConvSpec

__all__ = [
    "ACBlock",
    "Block",
    "BlockOptions",
    "Branches",
    "ConvSpec",
    "Deployable",
    "DilatedReparamBlock",
    "DiverseBranchBlock",
    "EdgeOrientedBlock",
    "ImplicitA",
    "ImplicitConv",
    "ImplicitM",
    "LinearBottleneck",
    "MobileOneBlock",
    "OREPABlock",
    "QARepVGGBlock",
    "RepConv",
    "RepConvN",
    "RepConvOREPA",
    "RepGhostBlock",
    "RepLKBlock",
    "RepMixer",
    "RepVGGBlock",
    "RepVGGDW",
    "Sum",
    "TrainingPlan",
    "shortcut_branch",
]
