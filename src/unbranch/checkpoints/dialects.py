"""Whose names a checkpoint uses: one table of rewrites for each, from their names to ours."""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """Rewrites of a key, applied in order; ``whose`` completes the sentence "read with ... names"."""

    whose: str
    rules: tuple[tuple[re.Pattern[str], str], ...]

    def translate(self, key: str) -> str:
        """Our name for their key; a key that no rule knows stays as it is.

        >>> REPVGG.translate("stage1.0.rbr_dense.conv.weight")
        'stages.0.0.branches.dense0.conv.weight'
        """
        for pattern, ours in self.rules:
            key = pattern.sub(ours, key)
        return key


def _dialect(whose: str, rules: Iterable[tuple[str, str]]) -> Dialect:
    return Dialect(whose, tuple((re.compile(pattern), ours) for pattern, ours in rules))


# Rules for a whole network are anchored at the start; rules for a block serve it anywhere: (^|\.)
_STAGES = (
    (r"^stage0\.", r"stem."),
    *((rf"^stage{i}\.", rf"stages.{i - 1}.") for i in range(1, 10)),
    (r"^linear\.", r"head."),
)

OURS = _dialect("our own", ())

REPVGG = _dialect(
    "RepVGG's",
    (
        *_STAGES,
        (r"(^|\.)rbr_dense\.conv\.", r"\1branches.dense0.conv."),
        (r"(^|\.)rbr_dense\.bn\.", r"\1branches.dense0.norm."),
        (r"(^|\.)rbr_1x1\.conv\.", r"\1branches.pointwise.conv."),
        (r"(^|\.)rbr_1x1\.bn\.", r"\1branches.pointwise.norm."),
        (r"(^|\.)rbr_identity\.", r"\1branches.shortcut."),
        (r"(^|\.)rbr_reparam\.", r"\1branches."),
        (r"(^|\.)se\.down\.", r"\1attention.reduce."),
        (r"(^|\.)se\.up\.", r"\1attention.expand."),
    ),
)

MOBILEONE = _dialect(
    "MobileOne's",
    (
        *_STAGES,
        (r"(^|\.)rbr_conv\.(\d+)\.conv\.", r"\1branches.dense\2.conv."),
        (r"(^|\.)rbr_conv\.(\d+)\.bn\.", r"\1branches.dense\2.norm."),
        (r"(^|\.)rbr_scale\.conv\.", r"\1branches.pointwise.conv."),
        (r"(^|\.)rbr_scale\.bn\.", r"\1branches.pointwise.norm."),
        (r"(^|\.)rbr_skip\.", r"\1branches.shortcut."),
        (r"(^|\.)reparam_conv\.", r"\1branches."),
        (r"(^|\.)se\.(reduce|expand)\.", r"\1attention.\2."),
    ),
)

TIMM = _dialect(
    "timm's",
    (
        (r"^head\.fc\.", r"head."),
        (r"(^|\.)conv_kxk\.(\d+)\.conv\.", r"\1branches.dense\2.conv."),
        (r"(^|\.)conv_kxk\.(\d+)\.bn\.", r"\1branches.dense\2.norm."),
        (r"(^|\.)conv_kxk\.conv\.", r"\1branches.dense0.conv."),
        (r"(^|\.)conv_kxk\.bn\.", r"\1branches.dense0.norm."),
        (r"(^|\.)conv_(1x1|scale)\.conv\.", r"\1branches.pointwise.conv."),
        (r"(^|\.)conv_(1x1|scale)\.bn\.", r"\1branches.pointwise.norm."),
        (r"(^|\.)identity\.", r"\1branches.shortcut."),
        (r"(^|\.)reparam_conv\.", r"\1branches."),
        (r"(^|\.)attn\.fc1\.", r"\1attention.reduce."),
        (r"(^|\.)attn\.fc2\.", r"\1attention.expand."),
    ),
)

DIALECTS = (OURS, REPVGG, MOBILEONE, TIMM)
