"""Fold a module: record it, plan on the recording, place what the plan chose."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from unbranch.affine import Geometry, NotLinear
from unbranch.fold.facts import Fact
from unbranch.fold.graph import Graph
from unbranch.fold.interpret import Interpretation, interpret
from unbranch.fold.plan import Plan, plan
from unbranch.fold.refusals import refusals
from unbranch.fold.report import Folded, Refused, Report, Totals
from unbranch.fold.totals import totals
from unbranch.frontends.collecting import uncollected
from unbranch.frontends.dense import dense_work, totals_written
from unbranch.frontends.measured import costs_of
from unbranch.frontends.modules.emit import native_padding
from unbranch.frontends.modules.frames import common_frame
from unbranch.frontends.modules.guards import check_foldable
from unbranch.frontends.modules.guards import unwrap as inside
from unbranch.frontends.modules.inputs import ExampleInputs, arguments, guesses, one_sample
from unbranch.frontends.modules.recorder import record
from unbranch.frontends.modules.recording import Recording
from unbranch.frontends.modules.rewriting import TRACING_ERRORS, Rewriter
from unbranch.frontends.modules.sites import Finder, Signature, Site
from unbranch.frontends.modules.trees import lent_copy, settled
from unbranch.frontends.modules.unwrapping import snapshot, take_out
from unbranch.frontends.modules.writing import write
from unbranch.frontends.padding import padding_work
from unbranch.ops import Map

Where: TypeAlias = str | Callable[[str, nn.Module], bool] | None


@dataclass(eq=False)
class Folding:
    """One recording with its plan, ready to be reported or applied."""

    model: nn.Module
    recording: Recording
    rewriter: Rewriter
    known: Interpretation
    sites: list[Site]
    plan: Plan
    trusting: bool
    notes: tuple[str, ...]

    def report(self, applied: bool) -> Report:
        """What folds and what does not."""
        weights = {
            id(p): p for _, m in self.recording.modules for p in m._parameters.values() if p is not None
        }
        numbers = sum(p.numel() for p in weights.values())
        before = totals(self.recording.graph, self.recording.graph.nodes, numbers)
        folded, after = [], before
        for site in self.sites:
            removed, added = _site_totals(site, self.recording)
            after = after + Totals(
                added.ops - removed.ops,
                added.multiply_adds - removed.multiply_adds,
                added.parameters - removed.parameters,
            )
            last = site.steps[-1].frame.path
            folded.append(Folded(site.place, str(site.fact.geometry), site.how, removed, added, last))
        refused = [Refused(self._place(fact), why) for fact, why in self.plan.left]
        refused += [
            Refused(path or "(root)", f"{', '.join(why)}: not trusted")
            for path, why in self._doubts().items()
        ]
        frames = self.recording.frames
        refused += [Refused(frames[n.index].path or "(root)", why) for n, why in refusals(self.known)]
        folded.reverse()
        return Report(before, after, tuple(folded), tuple(dict.fromkeys(refused)), self.notes, applied)

    def apply(self) -> nn.Module:
        """Write the convolutions in."""
        return write(self.model, self.sites, self.recording, self.rewriter)

    @property
    def replaces_root(self) -> bool:
        """The root module would be another one."""
        return any(step.frame is self.recording.root for site in self.sites for step in site.steps)

    @property
    def doubted(self) -> set[int]:
        """Modules, by ``id``, of which another input may run another path; none where all is believed."""
        calls = {} if self.trusting else self.recording.calls
        return {key for key, frames in calls.items() if any(frame.doubts for frame in frames)}

    def _place(self, fact: Fact) -> str:
        frames = [self.recording.frames[node] for node in fact.members]
        return common_frame(frames).path or "(root)"

    def _doubts(self) -> dict[str, list[str]]:
        """Module calls that were not witnessed and that run a linear op of their own."""
        found: dict[str, list[str]] = {}
        for calls in self.recording.calls.values():
            for frame in (frame for frame in calls if frame.doubts):
                nodes = (self.recording.graph.nodes[e] for e in frame.events if isinstance(e, int))
                if any(isinstance(node.records[0], Map) for node in nodes):
                    found[frame.path] = frame.doubts
        return found


def prepare(
    model: nn.Module,
    example_inputs: ExampleInputs,
    where: Where = None,
    cost: str = "work",
    trust: str = "witnessed",
    runtime: str = "torch",
    notes: Sequence[str] = (),
) -> Folding:
    """Record and plan; nothing is changed.

    Raises:
        ValueError: the model is in training mode, an option is none of those known, or no example input fits.
    """
    if trust not in ("witnessed", "observed"):
        raise ValueError(f"trust={trust!r} is neither 'witnessed' nor 'observed'")
    check_foldable(model)
    args, kwargs, recording = _record(model, example_inputs)
    rewriter = Rewriter(model, args, kwargs, recording)
    finder = Finder(recording, trusting=trust == "observed")
    graph = recording.graph
    beside = partial(_work_beside, graph)
    costs = costs_of(cost, runtime, graph, beside, lambda fact: _ops_made(fact) + len(fact.pending))

    def check(facts: Sequence[Fact]) -> dict[int, str]:
        """Why some of the chosen regions cannot be placed."""
        sites, refused = [], {}
        for fact in facts:
            try:
                site = finder.find(fact)
                if not _selected(where, site):
                    raise NotLinear("not selected by where")
                if len(site.removed(graph.nodes)) <= _ops_made(fact):
                    raise NotLinear("")
                sites.append(site)
            except NotLinear as error:
                refused[id(fact)] = str(error)
        for site in rewriter.refused(sites):
            refused[id(site[0].fact)] = site[1]
        if not refused:
            uneven = "a module is called more than once, and not every call folds alike"
            refused = {id(site.fact): uneven for site in _uneven(sites, recording)}
        return refused

    known = interpret(graph)
    chosen = plan(known, costs, check)
    sites = [finder.find(fact) for fact in chosen.regions]
    notes = (*notes, *_untied(sites, recording))
    return Folding(model, recording, rewriter, known, sites, chosen, finder.trusting, notes)


def _untied(sites: Sequence[Site], recording: Recording) -> Iterator[str]:
    """A note for each parameter that several modules share and that a fold takes in."""
    counts = Counter(id(p) for _, m in recording.modules for p in m._parameters.values() if p is not None)
    tied = {parameter for parameter, owners in counts.items() if owners > 1}
    if not tied:
        return
    modules = (recording.frames[node].module for site in sites for node in site.fact.members)
    tied &= {id(p) for module in modules for p in module._parameters.values()}
    owners: dict[int, list[str]] = defaultdict(list)
    for path, module in recording.modules:
        for name, parameter in module._parameters.items():
            if id(parameter) in tied:
                owners[id(parameter)].append(f"{path}.{name}")
    for paths in owners.values():
        yield f"{' and '.join(paths)} were tied: folding unties them"


def _record(
    model: nn.Module, example_inputs: ExampleInputs
) -> tuple[tuple[Any, ...], dict[str, Any], Recording]:
    if example_inputs is not None:
        args, kwargs = arguments(one_sample(example_inputs))
        return args, kwargs, record(model, args, kwargs)
    tried = []
    for guess in guesses(model):
        try:
            return (guess,), {}, record(model, (guess,))
        except TRACING_ERRORS as error:
            tried.append(
                f"{tuple(guess.shape)}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            )
    raise ValueError(
        f"no input that {type(model).__name__} accepts could be guessed ({'; '.join(tried)}): pass example_inputs"
    )


def _pads_beside(geometry: Geometry) -> bool:
    """Torch's layer cannot pad so itself, or makes an op of it."""
    g = geometry
    zeros = g.mode == "zeros" or not g.is_padded
    return g.rank > 0 and not g.transposed and not (zeros and native_padding(g) is not None)


def _work_beside(graph: Graph, fact: Fact) -> float:
    """What padding beside the convolution moves, or the zeros between a dense matrix' groups multiply."""
    return padding_work(graph, fact) if _pads_beside(fact.geometry) else dense_work(fact)


def _ops_made(fact: Fact) -> int:
    """The convolution, and the padding that torch's layer does beside it."""
    return 1 + _pads_beside(fact.geometry)


def _selected(where: Where, site: Site) -> bool:
    """``where`` names the site's module, one of its members, or a module around it."""
    if where is None:
        return True
    frames = {id(f): f for step in site.steps for f in step.frame.ancestors()}
    if callable(where):
        return any(where(frame.path, frame.module) for frame in frames.values())
    return any(fnmatchcase(frame.path, where) for frame in frames.values())


def _uneven(sites: Sequence[Site], recording: Recording) -> list[Site]:
    """The sites whose modules are called more often than they fold, or fold in two ways."""
    counts = Counter(site.signature for site in sites)
    users: dict[int, set[Signature]] = {}
    for site in sites:
        for step in site.steps:
            users.setdefault(id(step.frame.module), set()).add(site.signature)
    return [
        site
        for site in sites
        if any(
            counts[site.signature] != len(recording.calls[id(step.frame.module)])
            or (site.how != "graph" and len(users[id(step.frame.module)]) > 1)
            for step in site.steps
        )
    ]


def _site_totals(site: Site, recording: Recording) -> tuple[Totals, Totals]:
    """Of the region as it stands, and of the convolution that takes its place."""
    owned = {
        id(p): p.numel()
        for node in site.fact.members
        for p in recording.frames[node].module._parameters.values()
        if p is not None
    }
    removed = totals(recording.graph, site.removed(recording.graph.nodes), sum(owned.values()))
    return removed, replace(totals_written(site.fact), ops=_ops_made(site.fact))


@uncollected()
def reparameterize_copy(
    model: nn.Module, example_inputs: ExampleInputs, unwrap: bool = False, **options: Any
) -> tuple[nn.Module, Report]:
    """A folded copy and its report."""
    inner, wrapper = inside(model)
    check_foldable(inner)
    notes = [f"unwrapped from {wrapper}"] if wrapper else []
    folding = prepare(lent_copy(inner), example_inputs, notes=notes, **options)
    copy, report = _applied(folding, unwrap, replace_root=True)
    return settled(copy, inner), report


@uncollected()
def reparameterize_in_place(
    model: nn.Module, example_inputs: ExampleInputs, unwrap: bool = False, **options: Any
) -> Report:
    """Fold where the module stands.

    Raises:
        ValueError: the root itself would be replaced, and nobody could be told; or as `take_out`. Nothing is changed then.
    """
    inner, _ = inside(model)
    folding = prepare(inner, example_inputs, **options)
    if folding.replaces_root:
        raise ValueError(
            f"{type(inner).__name__} sums its branches in the root module itself, which cannot be replaced in place: "
            "use model = reparameterize(model)"
        )
    with ExitStack() as undo:
        if unwrap:
            undo.callback(snapshot(inner))
        report = _applied(folding, unwrap, replace_root=False)[1]
        undo.pop_all()
    return report


def _applied(folding: Folding, unwrap: bool, replace_root: bool) -> tuple[nn.Module, Report]:
    """The folded module, and without idle containers if asked for."""
    report = folding.report(applied=True)
    folded = folding.apply()
    if not unwrap:
        return folded, report
    rewriter = folding.rewriter
    folded, note = take_out(folded, rewriter.args, rewriter.kwargs, folding.doubted, replace_root)
    return folded, replace(report, notes=(*report.notes, note))


@uncollected()
def explain_modules(model: nn.Module, example_inputs: ExampleInputs, **options: Any) -> Report:
    """What would fold; nothing is changed."""
    inner, wrapper = inside(model)
    notes = [f"unwrapped from {wrapper}"] if wrapper else []
    return prepare(inner, example_inputs, notes=notes, **options).report(applied=False)
