"""Plans of a sum, made once and asked for in every step: a plan holds for as long as the branches are what they were."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from unbranch.blocks.merged import compiled
from unbranch.blocks.merged.plan import Training, TrainingPlan, plan_terms, read_terms, why_none
from unbranch.blocks.merged.terms import in_channels_last
from unbranch.blocks.merged.watch import Watched

SHAPES = 64
"""The most shapes of inputs whose plans a sum remembers."""


@dataclass(frozen=True, eq=False)
class Known:
    """Plans of the same modules, by what else they depend on."""

    watched: Watched
    plans: dict[Hashable, TrainingPlan] = field(default_factory=dict)


class Plans:
    """Those of one sum. Copies and pickles of it are empty."""

    def __init__(self) -> None:
        self.known: Known | None = None

    def __reduce__(self) -> tuple[type["Plans"], tuple[()]]:
        return Plans, ()

    def plan(
        self,
        children: dict[str, nn.Module | None],
        names: Sequence[str],
        x: Tensor,
        training: Training,
        learning: bool,
    ) -> TrainingPlan:
        """For the sum of the ``children`` of these names and an input like ``x``; ``learning`` is the sum's own mode.

        Remembered where all branches are terms, which are cheap to watch, of parameters that are no results themselves.
        """
        why = why_none(x, training, learning)
        if why is not None:
            return TrainingPlan((), None, dict.fromkeys(names, why))
        asked = (x.shape, x.dtype, x.device, in_channels_last(x), names, training, compiled.allowed())
        known = self.known  # read once: replicas in other threads share it
        if known is not None and not known.watched.unchanged(children):
            known = self.known = None
        if known is not None and asked in known.plans:
            return known.plans[asked]
        branches = {name: branch for name in names if (branch := children[name]) is not None}
        if len(branches) < len(names):  # torch says so itself when it calls one that is not there
            return TrainingPlan((), None, dict.fromkeys(names, "a branch is None"))
        terms, apart = read_terms(branches, x)
        plan = plan_terms(branches, terms, apart, x, training)
        if not apart and all(p is None or p.is_leaf for term in terms for p in term.parameters):
            if known is None or len(known.plans) >= SHAPES:
                modules = [module for term in terms for module in term.modules]
                known = self.known = Known(Watched(children, modules))
            known.plans[asked] = plan
        return plan
