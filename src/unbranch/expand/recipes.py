"""The recipes that `expand` knows by name."""

from collections.abc import Callable
from functools import partial

from unbranch.blocks import Branches, ConvSpec
from unbranch.blocks.acnet import asymmetric
from unbranch.blocks.bottleneck import linear_bottleneck
from unbranch.blocks.dbb import diverse
from unbranch.blocks.depthwise import Mixer, repghost, repvit
from unbranch.blocks.edge import edge_oriented
from unbranch.blocks.large_kernel import beside_dilated, beside_small
from unbranch.blocks.orepa import Squeezed, beside_squeezed
from unbranch.blocks.qarepvgg import norm_after_sum
from unbranch.blocks.repvgg import over_parameterized

Recipe = Callable[[ConvSpec], Branches]

RECIPES: dict[str, Recipe] = {
    "repvgg": partial(over_parameterized, num_branches=1, shortcut="auto"),
    "repconvn": partial(over_parameterized, num_branches=1, shortcut=None),
    "mobileone": partial(over_parameterized, num_branches=4, shortcut="auto"),
    "acnet": asymmetric,
    "dbb": diverse,
    "qarepvgg": norm_after_sum,
    "repvit": repvit,
    "edge": partial(edge_oriented, widen=2.0),
    "replk": partial(beside_small, small=5),
    "unireplk": partial(beside_dilated, kernels=(5, 7, 3, 3, 3), dilations=(1, 2, 3, 4, 5)),
    "orepa": Squeezed,
    "repconv_orepa": beside_squeezed,
    "bottleneck": partial(linear_bottleneck, widen=2.0),
    "repghost": repghost,
    "repmixer": partial(Mixer, num_branches=1, scale=1.0),
}
"""Branches by the name of their paper's block; YOLOv7's RepConv makes repvgg's, RepVGGDW repvit's."""


def recipe_of(recipe: str | Recipe) -> Recipe:
    """The recipe of a name, or the one given.

    Raises:
        ValueError: there is none of that name.
        TypeError: a block, which is more than its branches.
    """
    if isinstance(recipe, type) and not issubclass(recipe, Branches):
        raise TypeError(
            f"{recipe.__name__} is no recipe: name one ({', '.join(RECIPES)}), or give a function from a blocks.ConvSpec to blocks.Branches"
        )
    if callable(recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is none of {', '.join(RECIPES)}")
    return RECIPES[recipe]
