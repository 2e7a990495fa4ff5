"""What a run of a model leaves: the graph, and which module call each part of it ran in."""

from collections import defaultdict
from dataclasses import dataclass, field

from torch import nn

from unbranch.fold.graph import Graph
from unbranch.frontends.modules.frames import Frame


@dataclass
class Recording:
    """The graph of one run, its root call, the call each node ran in, and each module's calls.

    ``modules`` holds every module once, with its path; ``reads``, by the ``id`` of a parameter or buffer, the calls that read it and
    whose module does not own it.
    """

    graph: Graph
    root: Frame
    frames: list[Frame] = field(default_factory=list)
    calls: dict[int, list[Frame]] = field(default_factory=lambda: defaultdict(list))
    reads: dict[int, set[Frame | None]] = field(default_factory=lambda: defaultdict(set))
    modules: list[tuple[str, nn.Module]] = field(default_factory=list)
