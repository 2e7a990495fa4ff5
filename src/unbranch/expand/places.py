"""Where branches can stand: a convolution as a network calls it, with the norm directly behind it where that can go in with it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbranch.affine import NotLinear
from unbranch.fold.facts import Fact
from unbranch.fold.graph import Node
from unbranch.fold.interpret import Interpretation, interpret
from unbranch.frontends.modules import ExampleInputs, Recording, arguments, record
from unbranch.frontends.modules.frames import Frame
from unbranch.frontends.modules.guards import check_foldable
from unbranch.frontends.modules.inputs import guesses, one_sample
from unbranch.frontends.modules.rewriting import TRACING_ERRORS
from unbranch.frontends.modules.sites import Finder, Site


def recorded(model: nn.Module, example_inputs: ExampleInputs) -> Recording:
    """One run of the model on the inputs, or on the first guess of one that it takes.

    Raises:
        ValueError: training mode, or the model does not take what it is given.
        TypeError: no inputs at all.
    """
    check_foldable(model)
    if example_inputs is not None and not isinstance(example_inputs, Tensor | Mapping | Iterable):
        kind = type(example_inputs).__name__
        raise TypeError(
            f"example_inputs is a {kind}: pass a tensor, a sequence of arguments or a mapping of them"
        )
    given = guesses(model) if example_inputs is None else [one_sample(example_inputs)]
    refused = []
    for one in given:
        args, kwargs = arguments(one)
        try:
            return record(model, args, kwargs)
        except TRACING_ERRORS as error:
            why = str(error).strip() or type(error).__name__
            refused.append(f"{_described((*args, *kwargs.values()))}: {why.splitlines()[0]}")
    name = type(model).__name__
    if example_inputs is None:
        raise ValueError(
            f"no input that {name} accepts could be guessed ({'; '.join(refused)}): pass example_inputs"
        )
    raise ValueError(f"{name} does not take example_inputs of shape {refused[0]}")


def _described(values: Sequence[object]) -> str:
    return ", ".join(str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in values)


@dataclass(eq=False)
class Places:
    """The convolutions of one recording."""

    recording: Recording
    known: Interpretation
    finder: Finder

    @classmethod
    def of(cls, model: nn.Module, example_inputs: ExampleInputs) -> "Places":
        """Those of a run on the inputs. Raises what `recorded` does."""
        recording = recorded(model, example_inputs)
        return cls(recording, interpret(recording.graph), Finder(recording))

    def site_of(self, layer: nn.Module) -> Site | None:
        """The convolution and the one norm directly behind it, ``s (W * x + b) + t``; None where the convolution is to be taken alone.

        It is alone where no norm reads its output first, where something else reads it too, where the norm serves other layers as well,
        and where the norm cannot be taken away; what comes behind, linear or not, stays as it is.

        Raises:
            ValueError: its calls end in different norms, so branches with norms of their own would have to train as each of these.
        """
        calls = self.recording.calls[id(layer)]
        behind = [self._norm_behind(call) for call in calls]
        norms = [None if node is None else self.recording.frames[node.index].module for node in behind]
        if len({id(norm) for norm in norms}) > 1:
            raise ValueError(
                f"it is called {len(calls)} times, with a different norm, or none, behind each: branches with norms of their own "
                "would see other statistics in training than those do"
            )
        if norms[0] is None or len(self.recording.calls[id(norms[0])]) != len(calls):
            return None
        sites = [self._site(call, node) for call, node in zip(calls, behind, strict=True) if node is not None]
        alike = Counter(None if site is None else site.signature for site in sites)
        return sites[0] if len(alike) == 1 else None

    def _norm_behind(self, call: Frame) -> Node | None:
        """The batch norm layer's op that reads the call's output."""
        graph = self.recording.graph
        for index in graph.readers.get(call.outputs[0], ()):
            if isinstance(self.recording.frames[index].module, _BatchNorm):
                return graph.nodes[index]
        return None

    def _site(self, call: Frame, norm: Node) -> Site | None:
        fact = self._fact(call, norm)
        if fact is None:
            return None
        try:
            site = self.finder.find(fact)
        except (
            NotLinear
        ):  # what keeps the norm where it is does not keep the convolution from having branches
            return None
        whole = site.how == "chain" and len(site.steps) == 2 and site.steps[site.anchor].frame is call
        return site if whole else None

    def _fact(self, call: Frame, norm: Node) -> Fact | None:
        """The norm's output as a map of what the call was given, by their own ops, whose inside nobody else reads."""
        graph, own = self.recording.graph, {*call.nodes, norm.index}
        for fact in self.known.of(norm.outputs[0], call.inputs[0]):
            inside = {value for node in fact.members for value in graph.nodes[node].outputs} - {fact.value}
            read = {reader for value in inside for reader in graph.readers.get(value, ())}
            closed = read <= fact.members and not inside & graph.kept
            if fact.is_plain and fact.axis == 1 and fact.members <= own and closed:
                return fact
        return None
