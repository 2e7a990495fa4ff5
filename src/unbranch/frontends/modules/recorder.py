"""Record a model: one run on example inputs becomes a flat graph of ATen ops, each tagged with the module call it ran in."""

import gc
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from unbranch.fold.graph import Graph, Node
from unbranch.fold.keeping import Writes, attributes_kept, copied
from unbranch.frontends.collecting import uncollected
from unbranch.frontends.modules.frames import LEAKED, Frame
from unbranch.frontends.modules.modes import Dispatch, Functions, unseen
from unbranch.frontends.modules.numbers import (
    READ,
    Place,
    Size,
    Sized,
    is_sized,
    mentions_size,
    plain,
)
from unbranch.frontends.modules.recording import Recording
from unbranch.frontends.modules.torch_calls import (
    FILLS,
    LOOKS,
    READ_BACK,
    SIZES,
    THROUGH_VIEWS,
    arranges,
    bounds,
    counts_pieces,
    cuts,
    grows,
    means_less,
    slab_of,
    written,
)
from unbranch.frontends.modules.trees import attributes_of, leaves, replaced, tensors_of
from unbranch.ops import Operand

ViewKey = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]


@uncollected()
def record(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Recording:
    """Run ``model`` once, in inference mode, and write down what it did. Attributes that the run sets are put back.

    Where torch does not take `Sized` numbers, as in ``x.expand(n, -1)``, plain ones go out and each call that asks for one is doubted.
    """
    try:
        return _recorded(Recorder(model), args, kwargs or {})
    except (TypeError, AssertionError):
        return _recorded(Recorder(model, plain_sizes=True), args, kwargs or {})


def _recorded(recorder: "Recorder", args: Sequence[Any], kwargs: dict[str, Any]) -> Recording:
    """On copies of the arguments: one tensor that stands in two places is two inputs, and what the forward does to a list is its own."""
    model = recorder.model
    args, kwargs = copied((tuple(args), kwargs))
    with attributes_kept(model, recorder.stored):
        result = recorder.run(args, kwargs)
        recorder.keep([result, args, kwargs, *model.parameters(), *model.buffers()])
        recorder.keep_living()  # an iterator in the result holds what nobody can look at
    recorder.recording.graph.forget_views(THROUGH_VIEWS)
    return recorder.recording


class Recorder:
    """Runs a module and writes the graph; `record` is the way to use it for a whole model."""

    def __init__(self, model: nn.Module, plain_sizes: bool = False) -> None:
        self.model, self.plain_sizes = model, plain_sizes
        modules = list(model.named_modules())
        self.paths = {id(module): path for path, module in modules}
        tensors = [*model.parameters(), *model.buffers()]
        device = tensors[0].device if tensors else torch.device("cpu")
        graph = Graph(torch.device("cpu") if device.type == "mps" else device)
        self.recording = Recording(graph, Frame(model, "", None), modules=modules)
        self.stack: list[Frame] = []
        self.by_size = 0
        self.rigid: str | None = None
        self.looked_at: set[Place] = set()
        self.slices: dict[int, tuple[int, int, int | None]] = {}
        self.memory: dict[StorageWeakRef, dict[ViewKey, int]] = defaultdict(dict)
        self.named: list[weakref.ref[Tensor]] = []
        self.owned = {id(tensor) for tensor in tensors}
        self.hooked = {id(module) for _, module in modules if module._forward_hooks}

    def run(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The model's output."""
        graph = self.recording.graph
        for tensor in tensors_of((args, kwargs)):
            self._name(tensor, graph.value(tensor.shape, tensor.dtype))
        model = self.model
        self.writes = Writes(lambda: [*tensors_of((args, kwargs)), *model.parameters(), *model.buffers()])
        with ExitStack() as stack:
            stack.callback(self.writes.undo)
            stack.callback(register_module_forward_pre_hook(self._enter).remove)
            for _, module in self.recording.modules:
                if id(module) in self.hooked:  # what its hooks do is part of the call
                    last = module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
                    stack.callback(last.remove)
            leaving = register_module_forward_hook(self._leave_unhooked, with_kwargs=True, always_call=True)
            # A handle forgets this one when it is removed, and torch.compile would go on to warn of a hook.
            stack.callback(_global_forward_hooks_with_kwargs.pop, leaving.id, None)
            stack.callback(leaving.remove)
            stack.enter_context(torch.inference_mode())
            stack.enter_context(Dispatch(self))
            stack.enter_context(Functions(self))
            return self.model(*args, **kwargs)

    def keep(self, tree: Any) -> None:
        """The values in ``tree`` are read from outside."""
        self.recording.graph.kept.update(self.values_in(tree))

    def keep_living(self) -> None:
        """Whatever tensor is still held, by whomever, is read from outside; what only holds itself is held by nobody."""
        if any(
            self.value_of(t) not in self.recording.graph.kept
            for ref in self.named
            if (t := ref()) is not None
        ):
            gc.collect()
            self.keep([ref() for ref in self.named])

    def stored(self, module: nn.Module, values: list[Any]) -> None:
        """What a run left in a module's attributes: values are read from outside, anything else may differ next time."""
        self.keep(values)
        if any(True for _ in self.constants_in(values)):
            for frame in self.recording.calls.get(id(module), ()):
                if not frame.is_torch:
                    frame.distrust("an attribute of it changes while it runs")

    def constants_in(self, tree: Any, depth: int = 8) -> Iterator[Any]:
        """What nested arguments hold beside values of the network, its parameters, its modules and sizes."""
        if isinstance(tree, Tensor):
            if id(tree) not in self.owned and self.value_of(tree) is None:
                yield tree
        elif type(tree) in (dict, list, tuple, set, Size):
            for item in tree.values() if isinstance(tree, dict) else tree:
                yield from self.constants_in(item, depth)
        elif tree is None or is_sized(tree) or isinstance(tree, nn.Module | type):
            return
        elif isinstance(tree, int | float | str | bytes) or not depth or not attributes_of(tree):
            yield tree
        else:
            yield from self.constants_in(attributes_of(tree), depth - 1)

    def values_in(self, tree: Any) -> tuple[int, ...]:
        """The values that tensors in ``tree`` hold."""
        values = (self.value_of(tensor) for tensor in tensors_of(tree))
        return tuple(value for value in values if value is not None)

    def _enter(self, module: nn.Module, args: Any) -> None:
        with unseen():
            self._entered(module, args)

    def _leave_unhooked(self, module: nn.Module, args: Any, *rest: Any) -> None:
        if id(module) not in self.hooked:
            self._leave(module, args, *rest)

    def _leave(self, module: nn.Module, args: Any, *rest: Any) -> None:
        """``rest`` is the arguments by name and the output, or less where the forward raised."""
        self.settle()
        frame = self.stack.pop()
        frame.last = len(self.recording.graph.nodes)
        if len(rest) == 2:
            self._left(frame, *rest)

    def _left(self, frame: Frame, kwargs: Any, output: Any) -> None:
        frame.named = bool(kwargs)
        with unseen():
            frame.outputs = self.values_in(output)
            by_name, result = tuple(self.constants_in(kwargs)), tuple(self.constants_in(output))
        frame.simple = frame.simple and not kwargs and isinstance(output, Tensor)
        frame.given += by_name
        if frame.parent is not None:
            if by_name and frame.parent.doubts:
                frame.distrust(LEAKED)
            if result and frame.doubts:
                frame.parent.distrust(LEAKED)

    def _entered(self, module: nn.Module, args: Any) -> None:
        self.settle()
        parent = self.stack[-1] if self.stack else None
        frame = Frame(module, self.paths.get(id(module), type(module).__name__), parent)
        if parent is None:
            self.recording.root = frame
        else:
            parent.events.append(frame)
        if id(module) not in self.paths:
            frame.doubts.append("it is a module made during the call")
        if isinstance(module, torch.jit.ScriptModule):
            frame.doubts.append("it is scripted, so its branches cannot be seen")
        frame.first = frame.last = len(self.recording.graph.nodes)
        frame.inputs = self.values_in(args)
        frame.given = tuple(self.constants_in(args))
        if parent is not None and parent.doubts and frame.given:
            frame.distrust(LEAKED)
        frame.simple = len(args) == 1 and isinstance(args[0], Tensor)
        self.recording.calls[id(module)].append(frame)
        self.stack.append(frame)

    def doubt(self, why: str, place: Place | None = None) -> None:
        """The call that runs now may do something else for another input; ``place`` defers that to `settle`."""
        if place is not None:
            self.looked_at.add(place)
        elif self.stack and why not in self.stack[-1].doubts and not self.stack[-1].is_torch:
            self.stack[-1].doubts.append(why)

    def settle(self) -> None:
        """Sizes that C code looked at, and that were no arguments of a torch function, were read for good."""
        if self.looked_at:
            self.looked_at.clear()
            self.doubt(READ)

    def called(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run one torch function; sizes go in as plain numbers and come out as `Sized`."""
        sized, why = mentions_size((args, kwargs)), means_less(func, args, kwargs)
        if sized:
            args, kwargs = plain(args), plain(kwargs)
        self.by_size += sized
        self.rigid, before = why, self.rigid
        try:
            result = func(*args, **kwargs)
        finally:
            self.by_size -= sized
            self.rigid = before
        self._looked(func, args, kwargs, result)
        if func is Tensor.__getitem__ and isinstance(result, Tensor) and cuts(args[1]):
            self._uncut(args[0], result)
        if func in SIZES and not (self.stack and self.stack[-1].is_torch) and self.values_in(args[0]):
            if self.plain_sizes:
                self.doubt(READ)
                return result
            return self._sized(result)
        return result

    def _looked(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Numbers or sizes that a call brings into Python."""
        if func in READ_BACK and self.values_in((args, kwargs)):
            self.doubt("it reads a value back into Python")
            self.keep((args, kwargs))
        elif (func in LOOKS or counts_pieces(func, args, kwargs, result)) and self.values_in((args, kwargs)):
            self.doubt(READ)

    def _uncut(self, value: Tensor, result: Tensor) -> None:
        """A slice that took everything made no op; of a larger input it takes a part."""
        known = self.value_of(value)
        if known is not None and known == self.value_of(result):
            graph = self.recording.graph
            fresh = graph.value(result.shape, result.dtype)
            reason = "a slice that happens to take everything"
            self._append("slice", ([graph.values[known]], {}), [fresh], reason)
            self._name(result, fresh)

    def _sized(self, result: Any) -> Any:
        if isinstance(result, tuple):
            return Size(Sized(n, self.doubt, own=True) for n in result)
        return Sized(result, self.doubt, own=True)

    # Ops

    def dispatched(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run one ATen op and append it to the graph if it depends on the input."""
        traced = replaced((args, kwargs), self._operand)
        reading = [tensor for tensor in tensors_of((args, kwargs)) if id(tensor) in self.owned]
        for tensor in reading:
            reader = self.stack[-1] if self.stack else None
            if reader is None or not any(tensor is own for own in reader.own_tensors()):
                self.recording.reads[id(tensor)].add(reader)
        targets = written(func, args, kwargs)
        if any(id(tensor) in self.owned for tensor in targets):
            self.doubt("it writes to a parameter or a buffer")
        self.writes.expect(targets)
        result = func(*args, **kwargs)
        outputs = list(tensors_of(result))
        if not outputs:
            self._written_only(str(func), targets, args)
        if not outputs or not (self.by_size or any(isinstance(leaf, Operand) for leaf in leaves(traced))):
            return result
        graph = self.recording.graph
        values = [graph.value(tensor.shape, tensor.dtype) for tensor in outputs]
        node = self._append(str(func), traced, values)
        if node.spelling in ("aten.slice.Tensor", "aten.select.int"):
            self.slices[node.index] = bounds(node.spelling, args)
        for tensor in targets:
            self._overwritten(node, tensor, args, values[0])
        for tensor, value in zip(outputs, values, strict=True):
            self._name(tensor, value)
        return result

    def _written_only(self, spelling: str, targets: Sequence[Tensor], args: Any) -> None:
        """An op that returns nothing has still written."""
        graph = self.recording.graph
        for tensor in targets:
            known = self.value_of(tensor)
            if known is not None:
                old = graph.values[known]
                fresh = graph.value(old.shape, old.dtype)
                node = self._append("write", ([old], {}), [fresh], f"{spelling} writes and returns nothing")
                self._overwritten(node, tensor, args, fresh)
                self._name(tensor, fresh)

    def _append(self, spelling: str, traced: Any, values: list[Operand], reason: str | None = None) -> Node:
        graph = self.recording.graph
        if self.by_size and not arranges(spelling, traced):
            reason = reason or "an argument is computed from the input's size"
        reason = reason or self.rigid or (None if self.by_size else grows(spelling, traced))
        traced = replaced(traced, self._snapshot)
        node = graph.call(spelling, traced[0], traced[1], values, reason)
        frame = self.stack[-1] if self.stack else self.recording.root
        self.recording.frames.append(frame)
        frame.events.append(node.index)
        return node

    def _operand(self, tensor: Tensor) -> Any:
        value = self.value_of(tensor)
        return tensor if value is None else self.recording.graph.values[value]

    def _snapshot(self, tensor: Tensor) -> Tensor:
        """A constant as it is now: what the forward computed by itself, it may write to later."""
        return tensor if id(tensor) in self.owned else tensor.detach().clone()

    # Memory: a value is known by the view of memory that holds it

    def _name(self, tensor: Tensor, value: Operand) -> None:
        self.named.append(weakref.ref(tensor))
        if tensor.layout is torch.strided:
            self.memory[StorageWeakRef(tensor.untyped_storage())][_key(tensor)] = value.index

    def value_of(self, tensor: Tensor) -> int | None:
        """The value that a tensor holds, None for a constant."""
        if is_functorch_wrapped_tensor(tensor):
            self.doubt(
                "it runs within a transform such as torch.vmap, under which values cannot be told apart"
            )
            return None
        if tensor.layout is not torch.strided:
            return None
        views = self.memory.get(StorageWeakRef(tensor.untyped_storage()))
        if not views:
            return None
        if _key(tensor) not in views:
            graph = self.recording.graph
            fresh = graph.value(tensor.shape, tensor.dtype)
            known = [graph.values[value] for value in views.values()]
            self._append(
                "view", (known, {}), [fresh], "it is a view of memory that other values were written to"
            )
            views[_key(tensor)] = fresh.index
        return views[_key(tensor)]

    def _overwritten(self, node: Node, tensor: Tensor, args: Any, value: Operand) -> None:
        """Every other view of memory that was written to holds a new value."""
        graph = self.recording.graph
        views = self.memory[StorageWeakRef(tensor.untyped_storage())]
        mine = _key(tensor)
        for key, old in list(views.items()):
            if key == mine:
                continue
            base = graph.values[old]
            fresh = graph.value(base.shape, base.dtype)
            slab = self._slab(views.get(mine), old, args) if node.spelling in FILLS else None
            if slab is None:
                reason = "its memory was written to through another view"
                self._append("write", ([base, value], {}), [fresh], reason)
            else:
                self._append("aten.slice_scatter.default", ([base, *slab], {}), [fresh])
            views[key] = fresh.index

    def _slab(self, view: int | None, base: int, args: Any) -> list[Any] | None:
        """(source, axis, start, stop) where ``view`` is one slice of ``base`` and what was written is a constant."""
        node = None if view is None else self.recording.graph.producers.get(view)
        if node is None or node.inputs != (base,) or node.index not in self.slices:
            return None
        written = args[1] if len(args) > 1 else 0.0
        if isinstance(written, Tensor) and self.value_of(written) is not None:
            return None
        return slab_of(
            node.spelling, written, self.slices[node.index], len(self.recording.graph.values[base].shape)
        )


def _key(tensor: Tensor) -> ViewKey:
    return int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype
