"""Take out what a fold leaves idle: neutral layers in containers, and containers of one layer, of which that layer takes the place.

A container is one whose forward is ``nn.Sequential``'s own. It is free to change if a run calls it and nobody but its own forward reads
what it holds. Another run proves the outcome, bit by bit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from unbranch.fold.verify import RUN_ERRORS, outputs_of
from unbranch.frontends.modules.trees import each_module, held_elsewhere
from unbranch.frontends.modules.watching import Shell, watched
from unbranch.ops.batch_norm import FoldedNorm

Run: TypeAlias = Callable[[nn.Module], dict[str, Tensor]]

_OWN = vars(nn.Sequential())
_PLAIN = (bool, int, float, str, type(None))


def take_out(
    root: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    doubted: set[int],
    replace_root: bool,
) -> tuple[nn.Module, str]:
    """What stands in the root's place, and a note of what was done.

    ``doubted`` holds modules, by ``id``, whose forward may look at what they hold in a way that no run has shown: theirs is kept.

    Raises:
        ValueError: the model then raises or computes something else; nothing is changed.
    """
    shell, run = Shell(root), partial(outputs_of, args=args, kwargs=kwargs)
    count = sum(1 for _ in each_module(root))
    before, free, kept = _sorted_out(shell, run, doubted)
    undo = snapshot(shell)
    place = partial(_place, shell, replace_root)
    place(free.values())
    if not _gives(run, shell, before):
        undo()
        raise ValueError(_blame(run, shell, before, free, place, undo))
    left = sum(1 for _ in each_module(shell.root))
    note = f"unwrap: {count - left} of {count} modules were taken out"
    why = f"; kept, because other code looks into them, or may: {', '.join(kept)}" if kept else ""
    return shell.root, note + why


def snapshot(root: nn.Module) -> Callable[[], None]:
    """Call it to give every module the attributes, parameters and children that it has now."""
    modules = [m for m in each_module(root) if not isinstance(m, torch.jit.ScriptModule)]
    held: list[dict[str, Any]] = [d for m in modules for d in (vars(m), m._modules, m._parameters)]
    before = [(now, dict(now)) for now in held]

    def restore() -> None:
        for now, was in before:
            now.clear()
            now.update(was)

    return restore


def _sorted_out(
    shell: Shell, run: Run, doubted: set[int]
) -> tuple[dict[str, Tensor], dict[str, nn.Module], list[str]]:
    """One run: its outputs, the containers that are free to change, and the paths of those that are read by other code, or may be."""
    named = list(shell.root.named_modules())
    elsewhere = {held for held, _ in held_elsewhere(named)}
    elsewhere |= {id(child) for _, m in named if id(m) in doubted for child in m._modules.values()}
    containers = {path: module for path, module in named if _is_container(module)}
    with watched(shell, containers) as seen:
        before = run(shell)
    kept = {p for p, m in containers.items() if seen[p].looked_at or id(m) in elsewhere}
    free = {p: m for p, m in containers.items() if seen[p].called and p not in kept}
    return before, free, [path or "the root" for path in containers if path in kept]


def _is_container(module: nn.Module) -> bool:
    if not isinstance(module, nn.Sequential):
        return False
    kind = type(module)
    own = kind.forward is nn.Sequential.forward and kind.__iter__ is nn.Sequential.__iter__
    return own and kind.__call__ is nn.Module.__call__ and _is_bare(module)


def _is_bare(module: nn.Module, *besides: str) -> bool:
    """No hooks, and no parameters or buffers of its own; nor a forward of its own beside its class's."""
    spared = ("training", "_modules", *besides)
    return "forward" not in vars(module) and all(
        vars(module).get(name) == value for name, value in _OWN.items() if name not in spared
    )


def _is_neutral(module: nn.Module | None) -> bool:
    buffers = ("_buffers", "_non_persistent_buffers_set")
    return module is not None and type(module) in (nn.Identity, FoldedNorm) and _is_bare(module, *buffers)


def _place(shell: Shell, replace_root: bool, free: Iterable[nn.Module]) -> None:
    """Reduce these containers, inner ones first; every holder of one gets what it became."""
    chosen = {id(module) for module in free}
    became: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if id(module) not in became:
            became[id(module)] = module
            for name, child in list(module._modules.items()):
                if child is not None and (new := visit(child)) is not child:
                    module._modules[name] = new
            if id(module) in chosen:
                became[id(module)] = _reduced(module, replace_root or module is not shell.root)
        return became[id(module)]

    visit(shell)


def _reduced(container: nn.Module, replaceable: bool) -> nn.Module:
    """The container without neutral layers; its one layer, which takes its attributes over, where it is left with one."""
    children = container._modules
    for name in [name for name, child in children.items() if _is_neutral(child)]:
        del children[name]
    left = [child for child in children.values() if child is not None]
    if not replaceable or len(left) > 1:
        return container
    layer = left[0] if left else nn.Identity().train(container.training)
    attributes = {name: value for name, value in vars(container).items() if name not in _OWN}
    if any(_clashes(layer, name, value) for name, value in attributes.items()):
        return container
    vars(layer).update(attributes)
    return layer


def _clashes(layer: nn.Module, name: str, value: Any) -> bool:
    """The layer cannot show the attribute as its container did."""
    if not isinstance(value, _PLAIN):
        return True
    return name in dir(layer) and (name not in vars(layer) or vars(layer)[name] != value)


def _gives(run: Run, shell: Shell, before: Mapping[str, Tensor]) -> bool:
    """The model still runs, to the same bits."""
    try:
        after = run(shell)
    except RUN_ERRORS:
        return False
    return before.keys() == after.keys() and all(_same(after[path], old) for path, old in before.items())


def _same(a: Tensor, b: Tensor) -> bool:
    alike = a.dtype == b.dtype and a.shape == b.shape
    return alike and bool(((a == b) | ((a != a) & (b != b))).all())


def _blame(
    run: Run,
    shell: Shell,
    before: Mapping[str, Tensor],
    free: Mapping[str, nn.Module],
    place: Callable[[Iterable[nn.Module]], None],
    undo: Callable[[], None],
) -> str:
    """One line: the container without which the model does not run as before."""
    if not _gives(run, shell, before):
        return "two runs of the model differ, so that nothing can be shown of a third: leave unwrap off"
    for path, container in free.items():
        place([container])
        stands = _gives(run, shell, before)
        undo()
        if not stands:
            name = f"{path or 'the root'} ({type(container).__name__})"
            return f"other code asks {name} what it is, and runs otherwise without it: leave unwrap off"
    return "other code asks containers what they are, and runs otherwise without them: leave unwrap off"
