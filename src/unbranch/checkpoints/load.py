"""``load``: other people's weights into our networks, all of them or none."""

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NoReturn

from torch import Tensor, nn

from unbranch.checkpoints.errors import CheckpointError, summary
from unbranch.checkpoints.files import read_weights
from unbranch.checkpoints.match import EXPANDED, Reading, Target, forms_in_file, norms_in, read_as, within
from unbranch.expand import expand_like_, unchanged_on_error
from unbranch.frontends.modules import ExampleInputs

_COUNTER = (
    "num_batches_tracked"  # of batch norm: how many batches its statistics saw; outputs do not depend on it
)
_SHOWN = 2


@dataclass(frozen=True)
class LoadResult:
    """What ``load`` did; ``str()`` says it in a line."""

    path: Path
    names: str
    """Whose names the file uses: "our own", "RepVGG's", "MobileOne's" or "timm's"."""
    form: str
    """"training" or "deploy" where the model has blocks, "expanded" where it has layers from `expand_`, else empty."""
    wrapper: str
    """Where in the file the weights lay, such as "state_dict_ema"; empty for a plain state dict."""
    dtypes: tuple[str, ...]
    """The floating-point types of the file."""
    loaded: tuple[str, ...]
    """The model's keys that the file filled."""
    reinit: tuple[str, ...]
    """The model's keys that were left as the model was built, by ``reinit``."""
    counters: tuple[str, ...]
    """Batch counters that the file lacks and that stay as they are; outputs do not depend on them."""
    expanded: tuple[str, ...] = ()
    """Layers of the model that were given branches, because the file has them."""

    def __str__(self) -> str:
        how = [f"{self.names} names"]
        how += [f"{self.form} form"] if self.form else []
        how += [f"from {self.wrapper}"] if self.wrapper else []
        how += [" and ".join(self.dtypes)]
        text = f"{self.path}: {len(self.loaded)} tensors loaded ({', '.join(how)})"
        if self.expanded:
            text += f"; {len(self.expanded)} layers of the model were given the branches that the file has"
        if self.reinit:
            text += f"; started afresh: {summary(self.reinit)}"
        if self.counters:
            text += f"; {len(self.counters)} batch counters are not in the file"
        return text


def load(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    reinit: str | Iterable[str] = (),
    example_inputs: ExampleInputs = None,
) -> LoadResult:
    """Fill the model from a ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors`` file: all of it or nothing.

    Names of RepVGG's and MobileOne's authors, of timm and our own are understood, in training form or deploy
    form as the model is; so are wrappers (``state_dict``, ``model`` and averaged weights, which are
    preferred), prefixes (``module.`` and the like) and half precision. Nothing in the file is run.

    Weights of an expanded network (`unbranch.expand_`) give a plain model the same branches first, in place; ``example_inputs`` is
    then what `expand_` asks for. A folded model takes folded weights only: it cannot go back to branches.

    ``reinit`` names parts, such as ``["head"]``, that keep the values the model was built with: for another
    number of classes, or for what the model does not have (a pyramid has no head).

    Raises CheckpointError, in one line with the keys in its attributes, for a file that is missing, damaged
    or of another architecture, for keys missing or left over, shapes that differ, or the other form;
    ValueError for a ``reinit`` that names nothing.

    >>> model = unbranch.models.create("repvgg_a0", num_classes=10)
    >>> print(unbranch.load(model, "repvgg_a0.safetensors", reinit=["head"]))  # doctest: +SKIP
    repvgg_a0.safetensors: 349 tensors loaded (timm's names, training form, float32); started afresh: head.weight, head.bias
    """
    path = Path(path)
    parts = (reinit,) if isinstance(reinit, str) else tuple(reinit)
    weights = read_weights(path)
    target = Target.of(model)
    reading = read_as(weights.tensors, target)
    with unchanged_on_error(model):
        grown = _grown(path, model, reading, example_inputs)
        target = Target.of(model) if grown else target
        _check_parts(parts, target, reading)
        whole, reading = reading, reading.without(parts).with_tied(target)
        _check_forms(path, target, reading, parts)
        _check_norms(path, target, whole, parts)
        absent = tuple(n for n in target.state if n not in reading.tensors and not within(n, parts))
        counters = tuple(name for name in absent if name.endswith(_COUNTER))
        _check_tensors(path, target, reading, tuple(name for name in absent if name not in counters))
    model.load_state_dict(
        model.state_dict() | {target.prefix + name: t for name, t in reading.tensors.items()}
    )
    floating = {t.dtype for t in reading.tensors.values() if t.is_floating_point()}
    return LoadResult(
        path=path,
        names=reading.whose,
        form=target.form,
        wrapper=weights.wrapper,
        dtypes=tuple(sorted(str(dtype).removeprefix("torch.") for dtype in floating)),
        loaded=tuple(name for name in target.state if name in reading.tensors),
        reinit=tuple(name for name in target.state if within(name, parts)),
        counters=counters,
        expanded=grown,
    )


def _grown(path: Path, model: nn.Module, reading: Reading, example_inputs: ExampleInputs) -> tuple[str, ...]:
    """The layers that were given branches, so that the file's have a place."""
    try:
        return tuple(expand_like_(model, reading.tensors, example_inputs))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: in expanded form, and the model could not be expanded alike: {error}"
        ) from error


def _check_parts(parts: tuple[str, ...], target: Target, reading: Reading) -> None:
    for part in parts:
        if not any(within(name, (part,)) for name in (*target.state, *reading.tensors)):
            known = dict.fromkeys(name.split(".", 1)[0] for name in target.state)
            raise ValueError(f"reinit={part!r} names no part of the model; it has {', '.join(known)}")


def _check_forms(path: Path, target: Target, reading: Reading, parts: tuple[str, ...]) -> None:
    """Tell another form of the same network from a network that does not fit."""
    said = _other_form(target, reading, parts)
    if said is not None:
        _refuse_form(path, said, target, reading)


def _check_norms(path: Path, target: Target, reading: Reading, parts: tuple[str, ...]) -> None:
    """Norms in the file have no place where the model folded its own, and its convolutions none for weights that need a norm behind them.

    To leave such a norm out, as ``parts`` may ask for, would leave its convolution with the wrong weights; a part around it may be.
    """
    around = tuple(part for part in parts if part not in target.folded)
    norms = norms_in(reading.tensors)
    plain = [norm for norm in target.folded if norm in norms and not within(norm, around)]
    if plain:
        said = (
            f"in plain form, with {len(plain)} norms that the model has folded and cannot get back ({summary(plain)}): "
            "load it into the network as it was built, then unbranch.reparameterize that"
        )
        _refuse_form(path, said, target, reading)


def _refuse_form(path: Path, said: str, target: Target, reading: Reading) -> NoReturn:
    missing = tuple(name for name in target.state if name not in reading.tensors)
    left_over = tuple(reading.theirs[name] for name in reading.tensors if name not in target.state)
    keys = "".join(
        f"; {what} {len(names)}: {summary(names)}"
        for what, names in (("missing", missing), ("left over", left_over))
        if names
    )
    raise CheckpointError(f"{path}: {said}{keys}", missing=missing, left_over=left_over)


def _other_form(target: Target, reading: Reading, parts: tuple[str, ...]) -> str | None:
    """What form the file is in and what to do, where it is another one than the model's."""
    forms = forms_in_file(reading.tensors, target)
    other = {block: form for block, form in forms.items() if form != target.blocks[block]}
    plain = [layer for layer in target.expanded if f"{layer}.weight" in reading.tensors]
    if plain:
        return (
            f"without branches in {len(plain)} layers that the model has expanded ({summary(plain)}): "
            "load it into the plain network, then expand_ that"
        )
    for form in dict.fromkeys(other.values()):
        blocks = [block for block in other if other[block] == form]
        if form == "deploy":
            return (
                f"in deploy form, with one convolution in {len(blocks)} blocks whose branches cannot be recovered: "
                "call model.eval() and model.switch_to_deploy(), then load"
            )
        if form == EXPANDED and all(target.blocks[block] == "training" for block in blocks):
            return (
                f"in expanded form, of a network that was folded first ({len(blocks)} blocks): "
                "call model.eval() and model.switch_to_deploy(), then load"
            )
        return (
            f"in {form} form, with branches in {len(blocks)} blocks that the model has folded and cannot get back: "
            "load before switch_to_deploy()"
        )
    if _is_folded(target, reading, parts):
        return (
            "in deploy form, its norms folded into its convolutions and not to be recovered, and the model is in plain form, with norms: "
            "load it into unbranch.reparameterize(model)"
        )
    return None


def _is_folded(target: Target, reading: Reading, parts: tuple[str, ...]) -> bool:
    """The file has nothing of some norms of the model, and more than the model has only in biases for convolutions.

    Where those have biases as they are, it has no more, and the norms are all that it lacks.
    """
    extra = [name for name in reading.tensors if name not in target.state]
    absent = [name for name in target.state if name not in reading.tensors and not within(name, parts)]
    norms = norms_in(absent)
    gone = [norm for norm in norms if not any(within(name, (norm,)) for name in reading.tensors)]
    biases = all(name.endswith(".bias") and name[:-4] + "weight" in target.state for name in extra)
    return bool(gone) and biases and (bool(extra) or all(within(name, tuple(gone)) for name in absent))


def _check_tensors(path: Path, target: Target, reading: Reading, missing: tuple[str, ...]) -> None:
    """Nothing missing, nothing left over, and every tensor in the model's shape and kind."""
    extra = tuple(name for name in reading.tensors if name not in target.state)
    shared = target.state.keys() & reading.tensors.keys()
    unlike = tuple(
        name
        for name in target.state
        if name in shared and not _alike(reading.tensors[name], target.state[name])
    )
    left_over = tuple(reading.theirs[name] for name in extra)
    faults = []
    if missing:
        faults.append(f"missing {len(missing)}: {summary(missing)}")
    if left_over:
        faults.append(f"left over {len(left_over)}: {summary(left_over)}")
    if unlike:
        said = [
            f"{n} {_described(reading.tensors[n])} for {_described(target.state[n])}" for n in unlike[:_SHOWN]
        ]
        more = f" and {len(unlike) - _SHOWN} more" if len(unlike) > _SHOWN else ""
        faults.append(f"of another shape {len(unlike)}: {', '.join(said)}{more}")
    if not faults:
        return
    fitting = len(shared) - len(unlike)
    odd = (*missing, *extra, *unlike)
    parts = {name.split(".", 1)[0] for name in odd}
    norms = norms_in((*target.state, *reading.tensors))
    spare = len(parts) == 1 and not all(within(name, norms) for name in odd)  # a convolution needs its norm
    if fitting < len(target.state) / 2:
        advice = "; is it a checkpoint of another network?"
    else:
        advice = f"; reinit={sorted(parts)} would leave that part as it is" if spare else ""
    raise CheckpointError(
        f"{path}: {fitting} of the model's {len(target.state)} tensors fit ({reading.whose} names); "
        f"{'; '.join(faults)}{advice}",
        missing=missing,
        left_over=left_over,
        mismatched=unlike,
    )


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.is_floating_point() == b.is_floating_point()


def _described(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f"{tensor.dtype} "
    return f"{kind}{tuple(tensor.shape)}"
