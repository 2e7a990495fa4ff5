"""The verbs of the face: one function each, whatever form the network has.

A network is a module, an exported program, or an ONNX model (of the ``onnx`` or the ``onnx_ir`` package); the form that goes in comes out.
"""

from types import ModuleType
from typing import Any, Literal, TypeVar, overload

from torch import nn
from torch.export import ExportedProgram

from unbranch.fold.certificate import Certificate
from unbranch.fold.report import Report
from unbranch.fold.verify import Sizes, verify_modules
from unbranch.frontends import exported, modules
from unbranch.frontends.modules import ExampleInputs, arguments

Network = TypeVar("Network")


@overload
def reparameterize(
    model: Network,
    example_inputs: ExampleInputs = ...,
    *,
    where: Any = ...,
    cost: str = ...,
    runtime: str | None = ...,
    trust: str = ...,
    unwrap: bool = ...,
    return_report: Literal[False] = ...,
) -> Network: ...
@overload
def reparameterize(
    model: Network,
    example_inputs: ExampleInputs = ...,
    *,
    where: Any = ...,
    cost: str = ...,
    runtime: str | None = ...,
    trust: str = ...,
    unwrap: bool = ...,
    return_report: Literal[True],
) -> tuple[Network, Report]: ...
def reparameterize(
    model: Any,
    example_inputs: ExampleInputs = None,
    *,
    where: Any = None,
    cost: str = "work",
    runtime: str | None = None,
    trust: str = "witnessed",
    unwrap: bool = False,
    return_report: bool = False,
) -> Any:
    """A copy in which every linear region that pays is one convolution: ``copy(x) == model(x)``, borders included.

    Args:
        model: A module in eval mode, an exported program or an ONNX model. It is not changed. A parallel or compiled wrapper is
            taken off.
        example_inputs: For a module: a tensor, a sequence of arguments or a mapping of keyword arguments that it takes; it is
            recorded on them once. None guesses from the model's configuration or its first layer. Other forms need none.
        where: Which places may fold: a glob on module paths (``"backbone.*"``), or a function ``(path, module) -> bool``; node names
            and nodes for an ONNX model.
        cost: ``"work"``: never more multiply-adds and memory traffic than before. ``"measure"``: candidates are timed on this machine.
        runtime: Where ``cost="measure"`` times: ``"torch"`` (the default, but for ONNX models), ``"onnxruntime"`` or ``"openvino"``.
        trust: For a module: ``"witnessed"`` leaves alone what branches on, loops over or computes with the input's size or data;
            ``"observed"`` believes that every call is like the recorded one.
        unwrap: For a module: also take out the neutral layers that folding leaves in ``nn.Sequential`` containers, and put the layer of a
            container that is left with one in its place, so that a run makes fewer calls. Names in the state dict change with it. What
            hooks watch, and what code other than a container's own forward is seen to look into, is kept; a method that the example does
            not run may miss a container. The outcome is run once and equals, bit by bit, that without. ``where`` does not limit it.
        return_report: Also return the `Report`.

    A module's fold holds for calls like the example, of any size and batch: another optional argument or flag may take a path through the
    forward that was not recorded.

    Returns:
        The copy, of the class given unless the root module itself is the sum (or, with ``unwrap``, a container of one layer);
        parameters that were folded do not require gradients.

    Raises:
        ValueError: training mode, autocast, an unknown option, an invalid model, or no example input fits;
            ``unwrap`` for what is no module, or where the model would compute something else.
        TypeError: ``model`` is none of the forms.

    Source: structural re-parameterization, Ding et al., RepVGG (CVPR 2021), generalised to any affine region.

    Example:
        >>> block = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> reparameterize(block, torch.zeros(1, 3, 9, 9))(torch.zeros(2, 3, 7, 5)).shape
        torch.Size([2, 8, 5, 3])
    """
    options = _options(where, cost, runtime)
    if isinstance(model, nn.Module):
        copy, report = modules.reparameterize_copy(
            model, example_inputs, trust=trust, unwrap=unwrap, **options
        )
    elif isinstance(model, ExportedProgram):
        _check_containers(model, unwrap)
        copy, report = exported.reparameterize_exported(model, **options)
    else:
        form = _onnx(model)
        _check_containers(model, unwrap)
        copy, report = form.reparameterize_onnx(model, **options)
    return (copy, report) if return_report else copy


def reparameterize_(
    module: nn.Module,
    example_inputs: ExampleInputs = None,
    *,
    where: Any = None,
    cost: str = "work",
    runtime: str | None = None,
    trust: str = "witnessed",
    unwrap: bool = False,
) -> Report:
    """`reparameterize` in place: ``module`` itself is folded and stays the object that it is.

    Raises:
        ValueError: as `reparameterize`, and where the root module itself would have to be replaced; nothing is changed then.
            ``unwrap`` keeps the root.
        TypeError: ``module`` is no module: programs and files are folded into new ones.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)).eval()
        >>> reparameterize_(net, torch.zeros(1, 3, 9, 9)).changed, net(torch.zeros(1, 3, 5, 5)).shape
        (True, torch.Size([1, 8, 3, 3]))
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"a {type(module).__name__} is not folded in place: use reparameterize")
    options = _options(where, cost, runtime)
    return modules.reparameterize_in_place(module, example_inputs, trust=trust, unwrap=unwrap, **options)


def explain(
    model: Any,
    example_inputs: ExampleInputs = None,
    *,
    where: Any = None,
    cost: str = "work",
    runtime: str | None = None,
    trust: str = "witnessed",
) -> Report:
    """What `reparameterize` would fold, what it would leave alone, and why; changes nothing.

    Example:
        >>> print(explain(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()).changed)
        False
    """
    options = _options(where, cost, runtime)
    if isinstance(model, nn.Module):
        return modules.explain_modules(model, example_inputs, trust=trust, **options)
    if isinstance(model, ExportedProgram):
        return exported.explain_exported(model, **options)
    return _onnx(model).explain_onnx(model, **options)


def verify(
    before: Any,
    after: Any,
    example_inputs: Any = None,
    *,
    sizes: Sizes = None,
    report: Report | None = None,
) -> Certificate:
    """Run both on the same inputs and certify ``max|a - b| / max(1, max|b|)`` of every output: 1e-10 in float64, 1e-5 in float32.

    Where rounding alone moves an output of ``before`` by more than that, the limit is four times its own rounding error, and a note
    says so. On CPUs and NVIDIA GPUs nothing is rounded to TF32 or bfloat16 meanwhile, whatever torch's settings allow.

    Args:
        before: The network as it was, in eval mode.
        after: The folded one, of the same form.
        example_inputs: As for `reparameterize`; programs and ONNX models bring or draw their own.
        sizes: Other spatial sizes to run too, such as ``[(96, 160)]``; by default one more that the network takes, or a note that it
            takes none.
        report: The fold's report: the certificate then names the folded place whose output differs most.

    Raises:
        ValueError: one of them is in training mode, or a module comes without inputs.
        TypeError: the two are not of one form.

    Example:
        >>> conv = nn.Conv2d(3, 8, 3).eval()
        >>> bool(verify(conv, conv, torch.zeros(1, 3, 9, 9)))
        True
    """
    if isinstance(before, nn.Module) and isinstance(after, nn.Module):
        if example_inputs is None:
            raise ValueError("modules are verified on inputs: pass example_inputs")
        args, kwargs = arguments(example_inputs)
        return verify_modules(
            modules.unwrap(before)[0], modules.unwrap(after)[0], args, kwargs, sizes, report
        )
    if isinstance(before, ExportedProgram) and isinstance(after, ExportedProgram):
        return exported.verify_exported(before, after, example_inputs, sizes=sizes, report=report)
    if type(before) is not type(after):
        raise TypeError(
            f"{type(before).__name__} and {type(after).__name__} cannot be compared: both must be of one form"
        )
    return _onnx(before).verify_onnx(before, after, example_inputs, sizes=sizes, report=report)


def _options(where: Any, cost: str, runtime: str | None) -> dict[str, Any]:
    """What every form takes; a runtime that was not named is each form's own default."""
    return {"where": where, "cost": cost} | ({} if runtime is None else {"runtime": runtime})


def _check_containers(model: Any, unwrap: bool) -> None:
    """Raises ValueError: there is nothing to unwrap."""
    if unwrap:
        raise ValueError(
            f"unwrap=True is for modules, and this {type(model).__name__} has no containers: leave it off"
        )


def _onnx(model: Any) -> ModuleType:
    """The ONNX front end, which is there where its packages are.

    Raises:
        TypeError: ``model`` is no ONNX model.
    """
    kind = type(model)
    if kind.__module__.partition(".")[0] not in ("onnx", "onnx_ir"):
        raise TypeError(f"a {kind.__name__} is no module, exported program or ONNX model")
    from unbranch.frontends import onnx

    return onnx
