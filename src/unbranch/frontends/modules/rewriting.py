"""Rewrite a module whose own forward adds, concatenates or scales: trace it, put the convolution in, leave everything else.

The trace is used only if running it makes the very ops that the real call made.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError
from torch.nn.modules.module import register_module_forward_pre_hook

from unbranch.affine import NotLinear
from unbranch.fold.facts import Fact
from unbranch.fold.keeping import attributes_kept, buffers_kept, copied
from unbranch.frontends.modules.frames import Frame
from unbranch.frontends.modules.memory import is_in_place
from unbranch.frontends.modules.modes import unseen
from unbranch.frontends.modules.recorder import Recorder
from unbranch.frontends.modules.recording import Recording
from unbranch.frontends.modules.sites import Site

TRACING_ERRORS = (
    TraceError,
    TypeError,
    AttributeError,
    RuntimeError,
    ValueError,
    LookupError,
    NameError,
    AssertionError,
    NotImplementedError,
)
"""What somebody's forward may raise when proxies run through it."""


class _Proxy(fx.Proxy):
    """A proxy that keeps writes into a slice and sums in place for what they are."""

    def __setitem__(self, at: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, at, value), {})

    def _in_place(self, function: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(operator.itruediv, other)


class _Tracer(fx.Tracer):
    """Children are leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def iter(self, obj: Any) -> Iterator[Any]:
        pieces = (
            obj.node.args[1] if obj.node.target in ("chunk", torch.chunk) and len(obj.node.args) > 1 else None
        )
        return iter([obj[i] for i in range(pieces)]) if isinstance(pieces, int) else super().iter(obj)


def _writes(node: fx.Node) -> bool:
    """The node changes a tensor that others may read; by torch's custom its name then ends with an underscore."""
    name = (
        node.target if isinstance(node.target, str) else node.target.__name__ if callable(node.target) else ""
    )
    in_place = node.target in (
        operator.setitem,
        operator.iadd,
        operator.isub,
        operator.imul,
        operator.itruediv,
    )
    return in_place or (name.endswith("_") and not name.endswith("__"))


@dataclass(eq=False)
class Trace:
    """A module's forward as an fx graph, which fx node holds each value of the real call, and which ops each node ran."""

    module: fx.GraphModule
    holders: dict[int, fx.Node]
    ran: dict[fx.Node, frozenset[int]]


def _check_arguments(trace: Trace, gone: Sequence[fx.Node], source: fx.Node) -> None:
    """What goes away computes with nothing that the module is given but the source.

    Raises:
        NotLinear: it does; the folded module would not heed that argument.
    """
    for node in gone:
        for given in node.all_input_nodes:
            if trace.ran.get(node) and given.op == "placeholder" and given is not source:
                raise NotLinear(f"its argument {given.name} goes into what would fold")


@dataclass(eq=False)
class Rewriter:
    """Traces the calls of one recording on demand."""

    model: nn.Module
    args: Sequence[Any]
    kwargs: dict[str, Any]
    recording: Recording
    traces: dict[int, Trace | str] = field(default_factory=dict)

    def refused(self, sites: Sequence[Site]) -> list[tuple[Site, str]]:
        """The sites whose module's own forward must be rewritten and cannot be, with the reason."""
        rewritten = [site for site in sites if site.how == "graph"]
        self._trace_all([site.frame for site in rewritten])
        return [(site, why) for site in rewritten if (why := self._why_not(site))]

    def _why_not(self, site: Site) -> str | None:
        trace = self.traces[id(site.frame)]
        if isinstance(trace, str):
            return trace
        if not {site.fact.source, site.fact.value} <= trace.holders.keys():
            return (
                f"{site.frame.path or 'the root module'}: an end of it lies inside one of the module's calls"
            )
        try:
            gone = self._removable(trace, site.fact.members, self._later_uses(trace, site.fact))
            _check_arguments(trace, gone, trace.holders[site.fact.source])
        except NotLinear as error:
            return f"{site.frame.path or 'the root module'}: {error}"
        return None

    def _trace_all(self, frames: Sequence[Frame]) -> None:
        new = {id(frame): frame for frame in frames if id(frame) not in self.traces}
        if not new:
            return
        arguments = self._arguments(list(new.values()))
        for key, frame in new.items():
            try:
                self.traces[key] = self._make_trace(frame, arguments[key])
            except NotLinear as error:
                self.traces[key] = str(error)

    def rewrite(self, sites: Sequence[tuple[Site, nn.Module]]) -> nn.Module:
        """The module of the sites' frame with each site's layer in place."""
        trace = self.traces[id(sites[0][0].frame)]
        assert isinstance(trace, Trace)
        graph_module, graph = trace.module, trace.module.graph
        for number, (site, layer) in enumerate(sites):
            name = f"folded_{number}"
            graph_module.add_submodule(name, layer)
            source, uses = trace.holders[site.fact.source], self._later_uses(trace, site.fact)
            last = (
                [node for node in graph.nodes if node.op == "placeholder"][-1]
                if source.op == "placeholder"
                else source
            )
            with graph.inserting_after(last):
                call = graph.call_module(name, (source,))
            for node, user in uses:
                user.replace_input_with(node, call)
        members = frozenset().union(*(site.fact.members for site, _ in sites))
        for node in self._removable(trace, members):
            graph.erase_node(node)
        graph.eliminate_dead_code(
            lambda node: node.op in ("placeholder", "output") or bool(trace.ran.get(node)) or _writes(node)
        )
        graph.lint()
        graph_module.delete_all_unused_submodules()
        graph_module.recompile()
        return graph_module.eval()

    def _removable(
        self, trace: Trace, members: frozenset[int], replaced: Sequence[tuple[fx.Node, fx.Node]] = ()
    ) -> list[fx.Node]:
        """The nodes that go away with a region, last first; ``replaced`` holds the uses that its layer will take over.

        Raises:
            NotLinear: one of them is looked at by what stays, such as the size of a value inside.
        """
        removed: dict[fx.Node, None] = {}
        for node in reversed(trace.module.graph.nodes):
            ran = trace.ran.get(node, frozenset())
            users = [user for user in node.users if user not in removed and (node, user) not in replaced]
            if ran and ran - self.recording.graph.unread <= members:
                if users:
                    raise NotLinear(f"{node.name} is looked at by {users[0].name}, which is no part of it")
                removed[node] = None
            elif not (ran or users or node.op in ("placeholder", "output") or _writes(node)):
                removed[node] = None
        return list(removed)

    def _later_uses(self, trace: Trace, fact: Fact) -> list[tuple[fx.Node, fx.Node]]:
        """(node, user) where the user reads the region's value: of its last op, or of memory that this op wrote to in place."""
        nodes, producers = self.recording.graph.nodes, self.recording.graph.producers
        place = {node: position for position, node in enumerate(trace.module.graph.nodes)}
        target = trace.holders[fact.value]
        uses = [(target, user) for user in target.users]
        value = fact.value
        while (last := producers[value].index) in fact.members and is_in_place(nodes[last]):
            value = nodes[last].inputs[0]
            holder = trace.holders.get(value, target)
            if holder is not target:
                uses += [(holder, user) for user in holder.users if place[user] > place[target]]
        return uses

    def _make_trace(self, frame: Frame, args: tuple[Any, ...]) -> Trace:
        where = frame.path or "the root module"
        if frame.named:
            raise NotLinear(f"{where} is called with arguments by name")
        tracer = _Tracer()
        try:
            graph = tracer.trace(frame.module)
        except TRACING_ERRORS as error:
            raise NotLinear(
                f"{where}: its forward cannot be traced ({str(error).splitlines()[0]})"
            ) from error
        module = fx.GraphModule(tracer.root, graph, type(frame.module).__name__)
        run = _Run(module)
        recorder = Recorder(run)
        run.interpreter.recorder = recorder
        try:
            recorder.run(args, {})
        except TRACING_ERRORS as error:
            raise NotLinear(f"{where}: its trace does not run ({str(error).splitlines()[0]})") from error
        ours = [node.spelling for node in recorder.recording.graph.nodes]
        theirs = [self.recording.graph.nodes[i].spelling for i in frame.nodes]
        if ours != theirs:
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            raise NotLinear(
                f"{where}: its trace runs other ops than the real call: {ours[at : at + 1]} where that ran {theirs[at : at + 1]}"
            )
        start = frame.first
        ran = {node: frozenset(range(start + a, start + b)) for node, a, b in run.interpreter.ran}
        return Trace(module, self._holders(frame, run, recorder.recording), ran)

    def _arguments(self, frames: Sequence[Frame]) -> dict[int, tuple[Any, ...]]:
        """The real calls' arguments, by running the model once more."""
        pending = {id(frame.module): list(self.recording.calls[id(frame.module)]) for frame in frames}
        wanted = {id(frame) for frame in frames}
        caught: dict[int, tuple[Any, ...]] = {}

        def catch(module: nn.Module, args: tuple[Any, ...]) -> None:
            if id(module) not in pending:
                return
            call = pending[id(module)].pop(0)
            if id(call) in wanted:
                # Lists are copied too: what was handed over may be appended to after the call.
                caught[id(call)] = copied(args)

        handle = register_module_forward_pre_hook(catch)
        try:
            with torch.inference_mode(), attributes_kept(self.model), buffers_kept(self.model):
                self.model(*copied(self.args), **copied(self.kwargs))
        finally:
            handle.remove()
        return caught

    def _holders(self, frame: Frame, run: "_Run", local: Recording) -> dict[int, fx.Node]:
        """The fx node of each value of the frame: nodes correspond by position, inputs by order."""
        to_global = {}
        for mine, real in zip(local.graph.nodes, frame.nodes, strict=True):
            to_global.update(zip(mine.outputs, self.recording.graph.nodes[real].outputs, strict=True))
        to_global.update(zip(local.root.inputs, frame.inputs, strict=False))
        holders: dict[int, fx.Node] = {}
        for node, value in run.interpreter.held:
            if value in to_global:
                holders.setdefault(to_global[value], node)
        return holders


class _Interpreter(fx.Interpreter):
    """Runs a trace and notes which fx node holds which recorded value."""

    recorder: Recorder

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.held: list[tuple[fx.Node, int]] = []
        self.ran: list[tuple[fx.Node, int, int]] = []

    def run_node(self, n: fx.Node) -> Any:
        before = len(self.recorder.recording.graph.nodes)
        result = super().run_node(n)
        self.ran.append((n, before, len(self.recorder.recording.graph.nodes)))
        if isinstance(result, torch.Tensor) and n.op != "output":
            with unseen():
                value = self.recorder.value_of(result)
            if value is not None:
                self.held.append((n, value))
        return result


class _Run(nn.Module):
    """A module whose forward is the interpreter's."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.traced = module
        self.interpreter = _Interpreter(module)

    def forward(self, *args: Any) -> Any:
        """Run the trace."""
        return self.interpreter.run(*args)
