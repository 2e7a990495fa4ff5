"""Where a convolution can stand: how a region of the recording maps onto the modules that ran it.

The first that applies: a *chain* swaps member layers and touches no container; a *child* that is affine as a whole, alone or with
modules before and after it, becomes the convolution, alone or in a sequence; a *series* is a chain some of whose members are such
children; otherwise the module's own forward is traced and rewritten.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from unbranch.affine import Geometry, NotLinear
from unbranch.fold.facts import Fact, unchanged
from unbranch.fold.graph import Node
from unbranch.frontends.modules.emit import check_emittable
from unbranch.frontends.modules.frames import Frame, StandIn, common_frame
from unbranch.frontends.modules.memory import Memory
from unbranch.frontends.modules.recording import Recording
from unbranch.frontends.modules.remainder import remainder
from unbranch.frontends.modules.trees import held_elsewhere
from unbranch.frontends.modules.witness import ends_in_own_layer
from unbranch.ops import Concat, Identity, Permute, Reshape, Sum
from unbranch.ops.convolution import Convolution
from unbranch.ops.linear import Linear

Signature = tuple[str, tuple[int, ...], tuple[int, ...], Geometry, tuple[Any, ...]]


@dataclass(frozen=True, eq=False)
class Step:
    """One module of a chain: the calls before and after its part of the region; ``node`` is the region's first node in it."""

    frame: Frame
    before: tuple[Frame, ...]
    after: tuple[Frame, ...]
    node: int


@dataclass(frozen=True, eq=False)
class Site:
    """A region and the modules that it replaces. ``how`` is chain, child, series or graph; ``anchor`` is the step that gets the
    convolution.

    ``in_place`` says that the anchor's own weight and bias are rewritten and the module stays. ``given`` holds what the calls on the
    way were given beside the network's values.
    """

    how: str
    fact: Fact
    frame: Frame
    steps: tuple[Step, ...]
    anchor: int = 0
    linear: bool = False
    in_place: bool = False
    given: tuple[Any, ...] = ()

    @property
    def signature(self) -> Signature:
        """Equal for the calls of a shared module that fold alike."""
        modules = tuple(id(step.frame.module) for step in self.steps)
        start = self.frame.first if self.how == "graph" else min(self.fact.members)
        offsets = tuple(sorted(node - start for node in self.fact.members))
        return self.how, modules, offsets, self.fact.geometry, self.given

    def removed(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes of the region that go away; a chain's reshapes and permutations stay where they are."""
        kept = (Identity, Reshape, Permute) if self.how == "chain" else (Identity,)
        members = (nodes[index] for index in self.fact.members)
        return [node for node in members if not isinstance(node.records[0], kept)]

    @property
    def place(self) -> str:
        """The module path for people."""
        return self.steps[self.anchor].frame.path or "(root)"


@dataclass(eq=False)
class Finder:
    """Finds the site of a region in a recording. ``trusting`` believes what was observed without a witness."""

    recording: Recording
    trusting: bool = False
    known: dict[int, Site] = field(default_factory=dict)
    held: dict[int, str] | None = None

    @cached_property
    def memory(self) -> Memory:
        """Who overwrites what."""
        return Memory(self.recording.graph)

    @cached_property
    def hooked(self) -> list[Frame]:
        """The calls that somebody watches."""
        return [call for calls in self.recording.calls.values() for call in calls if call.is_hooked]

    def find(self, fact: Fact) -> Site:
        """The site.

        Raises:
            NotLinear: there is none; the reason says what stands in the way.
        """
        if id(fact) not in self.known:
            self.known[id(fact)] = self._find(fact)
        return self.known[id(fact)]

    def _find(self, fact: Fact) -> Site:
        frames = [self.recording.frames[node] for node in fact.members]
        frame = common_frame(frames)
        self._check_hooks(fact, frame)
        self.memory.check_source(fact)
        moves = any(
            isinstance(self.recording.graph.nodes[n].records[0], Reshape | Permute) for n in fact.members
        )
        # One layer takes the place of what stands for one, whose own layers may be a chain.
        stands = isinstance(_standing_for(frame).module, StandIn) and self._covers(fact.members, frame)
        layers = (
            (self._child, self._series, self._chain)
            if moves or stands
            else (self._chain, self._child, self._series)
        )
        reasons = []
        for attempt in (*layers, self._graph):
            try:
                return replace(attempt(fact, frame), given=self._given(fact, frame))
            except NotLinear as error:
                reasons.append(str(error))
        raise NotLinear("; ".join(dict.fromkeys(reasons)))

    def _given(self, fact: Fact, top: Frame) -> tuple[Any, ...]:
        """What the region's calls were given beside the network's values: two calls that differ in it do not fold alike."""
        seen: set[int] = set()
        given: list[Any] = []
        for node in sorted(fact.members):
            frame = self.recording.frames[node]
            while frame is not None and id(frame) not in seen:
                seen.add(id(frame))
                given += frame.given
                frame = None if frame is top else frame.parent
        return tuple(item if isinstance(item, int | float | str) else id(item) for item in given)

    def _check_hooks(self, fact: Fact, frame: Frame) -> None:
        """Nobody watches the inside: neither a member's call, nor one that an inner value merely passes through."""
        if not self.hooked:
            return
        above = {id(f) for f in frame.ancestors()}
        around = {id(f) for node in fact.members for f in self.recording.frames[node].ancestors()} - above
        inside = {output for node in fact.members for output in self.recording.graph.nodes[node].outputs}
        inside.discard(fact.value)
        for call in self.hooked:
            if id(call) in around or inside.intersection((*call.inputs, *call.outputs)):
                raise NotLinear(
                    f"{call.path or 'the root module'} has a forward hook, which would see other values"
                )

    def _check_witness(self, frames: Iterable[Frame], top: Frame) -> None:
        """Every forward between the region's nodes and ``top`` must do the same for any input."""
        if self.trusting:
            return
        for frame in frames:
            for inner in frame.up_to(top):
                if inner.doubts:
                    raise NotLinear(f"{inner.path or 'the root module'}: {', '.join(inner.doubts)}")

    def _check_parameters(self, top: Frame, kept: Iterable[Frame] = ()) -> None:
        """No stranger reads what the module owns, the modules of ``kept`` apart; one that shares a parameter keeps it."""
        reads = self.recording.reads
        if not reads:
            return
        module, apart = top.module, {id(m) for frame in kept for m in frame.module.modules()}
        mine = (m for m in module.modules() if id(m) not in apart)
        for tensor in (t for m in mine for t in (*m._parameters.values(), *m._buffers.values())):
            for reader in reads.get(id(tensor), ()):
                if reader is None or not any(
                    frame.module is module or any(tensor is t for t in frame.own_tensors())
                    for frame in reader.ancestors()
                ):
                    where = "outside any call" if reader is None else reader.path or "the root module"
                    raise NotLinear(f"a parameter or buffer of it is read in {where} too")

    def _check_references(self, module: nn.Module) -> None:
        """A module that is to be replaced is held by its parents alone, and by no list or attribute beside them."""
        if self.held is None:
            self.held = dict(held_elsewhere(self.recording.modules))
        if id(module) in self.held:
            raise NotLinear(f"it is also held in {self.held[id(module)]}, which is no submodule")

    # A chain of layers, each the only reader of the one before

    def _chain(self, fact: Fact, top: Frame) -> Site:
        graph, order = self.recording.graph, sorted(fact.members)
        if any(isinstance(graph.nodes[node].records[0], Sum | Concat) for node in order):
            raise NotLinear("it is no chain of layers")
        facts = self._facts_on_the_way(fact)
        stay = {n for n in order if n in facts and facts[n].rule is unchanged and _moves(graph.nodes[n])}
        frames = self._outermost(fact.members - stay, top)
        groups = _runs((frames[node], node) for node in order if node not in stay)
        if len({id(frame) for frame, _ in groups}) < len(groups):
            raise NotLinear("it enters a module twice")
        anchor = self._anchor([nodes for _, nodes in groups])
        in_place = self._fits_in_place(*groups[anchor], fact, top)
        steps = [
            Step(frame, (), (), nodes[0])
            if in_place and position == anchor
            else self._step(frame, nodes, fact, top)
            for position, (frame, nodes) in enumerate(groups)
        ]
        linear = isinstance(graph.nodes[groups[anchor][1][0]].records[0], Linear) or fact.geometry.rank == 0
        check_emittable(fact.geometry, linear)
        self.memory.check_untouched(fact, groups[anchor][1][0])
        for position, step in enumerate(steps):
            if position != anchor or not in_place:
                self._check_references(step.frame.module)
        layer = in_place and isinstance(steps[anchor].frame.module, nn.modules.conv._ConvNd)
        exempt = steps[anchor].frame if layer else None
        ran = (self.recording.frames[node] for node in order)
        starts = (frame.parent if frame is exempt else frame for frame in ran)
        self._check_witness((frame for frame in starts if frame is not None), top)
        return Site("chain", fact, top, tuple(steps), anchor, linear, in_place)

    def _outermost(self, nodes: Collection[int], top: Frame) -> dict[int, Frame]:
        """The call that each node is part of: a call in which others of them lie holds those too, and is replaced as one.

        So is a module below ``top`` that stands for one layer, if all that it runs is among them.
        """
        frames = self.recording.frames
        own = {id(frames[node]) for node in nodes}
        around = (frame for node in nodes for frame in frames[node].up_to(top) if frame is not top)
        own |= {id(f) for f in around if isinstance(f.module, StandIn) and self._covers(nodes, f)}
        return {node: [f for f in frames[node].ancestors() if id(f) in own][-1] for node in nodes}

    def _covers(self, nodes: Collection[int], frame: Frame) -> bool:
        """All that the call ran is among the nodes."""
        return all(node in nodes or node in self.recording.graph.unread for node in frame.nodes)

    def _facts_on_the_way(self, fact: Fact) -> dict[int, Fact]:
        facts, current = {}, fact
        while current.members:
            facts[self.recording.graph.producers[current.value].index] = current
            current = current.parts[0]
        return facts

    def _step(self, frame: Frame, nodes: list[int], fact: Fact, top: Frame) -> Step:
        if frame is top:
            raise NotLinear(f"{frame.path or 'the root module'} computes part of it in its own forward")
        moved = [n for n in frame.events if isinstance(n, int) and n in fact.members and n not in nodes]
        if moved:
            raise NotLinear(f"{frame.path} also rearranges the value")
        before, after = remainder(frame, fact, self.recording)
        self._check_parameters(frame, (*before, *after))
        return Step(frame, before, after, nodes[0])

    def _anchor(self, groups: list[list[int]]) -> int:
        """The first step with a layer of weights, or the first."""
        for position, nodes in enumerate(groups):
            for node in nodes:
                if isinstance(self.recording.graph.nodes[node].records[0], Convolution | Linear):
                    return position
        return 0

    def _fits_in_place(self, frame: Frame, nodes: list[int], fact: Fact, top: Frame) -> bool:
        """The layer that is there has the very shape that the folded one has, and its weight is its own parameter.

        A layer of somebody's own may do more before its op, such as padding by the size, which nothing may be folded across.
        """
        module, node = frame.module, self.recording.graph.nodes[nodes[0]]
        record = node.records[0]
        if frame is top or len(nodes) != 1 or not isinstance(record, Convolution | Linear):
            return False
        alone = nodes[0] == min(fact.members) if not frame.is_torch else len(frame.nodes) == 1
        if not alone or frame.outputs != node.outputs or not frame.simple:
            return False
        if (
            module._parameters.get("weight") is not record.weight
            or module._parameters.get("bias") is not record.bias
        ):
            return False
        if not frame.is_torch and not ends_in_own_layer(module, self._shape_given(frame)):
            return False
        self._check_parameters(frame)
        own = record.affine(0).lift(fact.geometry.rank).geometry
        same = (own.kernel, own.stride, own.padding, own.dilation, own.groups, own.transposed)
        g = fact.geometry
        return (
            same == (g.kernel, g.stride, g.padding, g.dilation, g.groups, g.transposed) and own.mode == g.mode
        )

    def _shape_given(self, frame: Frame) -> tuple[int, ...]:
        """The shape of the value that a call was given."""
        return self.recording.graph.values[frame.inputs[0]].shape

    # A child that is affine as a whole, modules before and after it apart

    def _child(self, fact: Fact, top: Frame) -> Site:
        if not fact.is_plain:
            raise NotLinear("its value leaves in another arrangement")
        top = _standing_for(top)
        if top.is_hooked:
            raise NotLinear(f"{top.path} has a forward hook, which would be lost")
        self._check_references(top.module)
        before, after = remainder(top, fact, self.recording)
        linear = fact.geometry.rank == 0
        check_emittable(fact.geometry, linear)
        self._check_parameters(top, (*before, *after))
        self._check_witness((self.recording.frames[n] for n in fact.members), top)
        return Site("child", fact, top, (Step(top, before, after, min(fact.members)),), 0, linear)

    # Modules one after the other, those that sum or stack affine as a whole

    def _series(self, fact: Fact, top: Frame) -> Site:
        if not fact.is_plain:
            raise NotLinear("its value leaves in another arrangement")
        groups = self._parts(fact, top)
        if len({id(frame) for frame, _ in groups}) < len(groups):
            raise NotLinear("it enters a module twice")
        linear = fact.geometry.rank == 0
        check_emittable(fact.geometry, linear)
        steps = tuple(self._step(frame, nodes, fact, top) for frame, nodes in groups)
        for step in steps:
            self._check_references(step.frame.module)
        anchor = self._anchor([nodes for _, nodes in groups])
        self.memory.check_untouched(fact, groups[anchor][1][0])
        self._check_witness((self.recording.frames[n] for n in fact.members), top)
        return Site("series", fact, top, steps, anchor, linear)

    def _parts(self, fact: Fact, top: Frame) -> list[tuple[Frame, list[int]]]:
        """The region as parts of modules: whole modules around its sums and moves, the modules that run the rest."""
        nodes, frames = self.recording.graph.nodes, self._outermost(fact.members, top)
        inner, order = (Sum, Concat, Reshape, Permute), sorted(fact.members)
        wholes = [self._whole(n, fact, top) for n in order if isinstance(nodes[n].records[0], inner)]
        around = ([*(w for w in wholes if node in w.nodes), frames[node]] for node in order)
        largest = (max(some, key=lambda frame: len(frame.nodes)) for some in around)
        return _runs(zip(largest, order, strict=True))

    def _whole(self, node: int, fact: Fact, top: Frame) -> Frame:
        """The smallest module below ``top`` that runs ``node``, has one input and one output, and lies in the region as a whole."""
        for frame in self.recording.frames[node].up_to(top):
            one = frame.simple and len(frame.inputs) == len(frame.outputs) == 1
            if frame is not top and one and self._covers(fact.members, frame):
                return _standing_for(frame)
        raise NotLinear("it sums, stacks or rearranges outside the modules that are part of it")

    # Anything else: the module's forward is traced and rewritten

    def _graph(self, fact: Fact, top: Frame) -> Site:
        if not fact.is_plain:
            raise NotLinear("its value leaves in another arrangement")
        if top.is_torch:
            raise NotLinear(f"{top.path} is torch's own {type(top.module).__name__}")
        if any(inner.is_hooked for inner in top.calls_within()) or top.is_hooked:
            raise NotLinear(f"{top.path or 'the root module'} holds modules with forward hooks")
        self._check_references(top.module)
        linear = fact.geometry.rank == 0
        check_emittable(fact.geometry, linear)
        self._check_witness((self.recording.frames[n] for n in fact.members), top)
        return Site("graph", fact, top, (Step(top, (), (), min(fact.members)),), 0, linear)


def _runs(placed: Iterable[tuple[Frame, int]]) -> list[tuple[Frame, list[int]]]:
    """Nodes by frame, as long as it stays the same one."""
    groups: list[tuple[Frame, list[int]]] = []
    for frame, node in placed:
        if not groups or groups[-1][0] is not frame:
            groups.append((frame, []))
        groups[-1][1].append(node)
    return groups


def _moves(node: Node) -> bool:
    """It computes nothing."""
    return isinstance(node.records[0], Reshape | Permute | Identity)


def _standing_for(frame: Frame) -> Frame:
    """The outermost module that stands for one layer and runs just this call's nodes, however deep in it; else the call itself."""
    found = frame
    for around in frame.ancestors():
        if around.nodes != frame.nodes:
            break
        if isinstance(around.module, StandIn):
            found = around
    return found
