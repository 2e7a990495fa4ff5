"""The verbs of the face: one function each, whatever form the network has."""

from typing import Literal, overload

from torch import nn

from unbranch.fold.certificate import Certificate
from unbranch.fold.report import Report
from unbranch.fold.verify import Sizes, verify_modules
from unbranch.frontends.modules import (
    ExampleInputs,
    Where,
    arguments,
    explain_modules,
    reparameterize_copy,
    reparameterize_in_place,
    unwrap,
)


@overload
def reparameterize(
    model: nn.Module,
    example_inputs: ExampleInputs = ...,
    *,
    where: Where = ...,
    cost: str = ...,
    trust: str = ...,
    return_report: Literal[False] = ...,
) -> nn.Module: ...
@overload
def reparameterize(
    model: nn.Module,
    example_inputs: ExampleInputs = ...,
    *,
    where: Where = ...,
    cost: str = ...,
    trust: str = ...,
    return_report: Literal[True],
) -> tuple[nn.Module, Report]: ...
def reparameterize(
    model: nn.Module,
    example_inputs: ExampleInputs = None,
    *,
    where: Where = None,
    cost: str = "work",
    trust: str = "witnessed",
    return_report: bool = False,
) -> nn.Module | tuple[nn.Module, Report]:
    """A copy in which every linear region that pays is one convolution: ``copy(x) == model(x)``, borders included.

    Args:
        model: In eval mode. It is not changed. A parallel or compiled wrapper is taken off.
        example_inputs: A tensor, a sequence of arguments or a mapping of keyword arguments that ``model`` takes; the model is recorded
            on it once. None guesses from the model's configuration or its first layer.
        where: Which places may fold: a glob on module paths (``"backbone.*"``), or a function ``(path, module) -> bool``.
        cost: ``"work"``: never more multiply-adds and memory traffic than before.
        trust: ``"witnessed"`` leaves alone what branches on, loops over or computes with the input's size or data;
            ``"observed"`` believes that every call is like the recorded one.
        return_report: Also return the `Report`.

    Returns:
        The copy, of the class given unless the root module itself is the sum; parameters that were folded do not require gradients.

    Raises:
        ValueError: training mode, autocast, an unknown option, or no example input fits.

    Source: structural re-parameterization, Ding et al., RepVGG (CVPR 2021), generalised to any affine region.

    Example:
        >>> block = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> reparameterize(block, torch.zeros(1, 3, 9, 9))(torch.zeros(2, 3, 7, 5)).shape
        torch.Size([2, 8, 5, 3])
    """
    copy, report = reparameterize_copy(model, example_inputs, where=where, cost=cost, trust=trust)
    return (copy, report) if return_report else copy


def reparameterize_(
    module: nn.Module,
    example_inputs: ExampleInputs = None,
    *,
    where: Where = None,
    cost: str = "work",
    trust: str = "witnessed",
) -> Report:
    """`reparameterize` in place: ``module`` itself is folded and stays the object that it is.

    Raises:
        ValueError: as `reparameterize`, and where the root module itself would have to be replaced; nothing is changed then.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)).eval()
        >>> reparameterize_(net, torch.zeros(1, 3, 9, 9)).changed, net(torch.zeros(1, 3, 5, 5)).shape
        (True, torch.Size([1, 8, 3, 3]))
    """
    return reparameterize_in_place(module, example_inputs, where=where, cost=cost, trust=trust)


def explain(
    model: nn.Module,
    example_inputs: ExampleInputs = None,
    *,
    where: Where = None,
    cost: str = "work",
    trust: str = "witnessed",
) -> Report:
    """What `reparameterize` would fold, what it would leave alone, and why; changes nothing.

    Example:
        >>> print(explain(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()).changed)
        False
    """
    return explain_modules(model, example_inputs, where=where, cost=cost, trust=trust)


def verify(
    before: nn.Module,
    after: nn.Module,
    example_inputs: ExampleInputs,
    *,
    sizes: Sizes = None,
    report: Report | None = None,
) -> Certificate:
    """Run both on the same inputs and certify ``max|a - b| / max(1, max|b|)`` of every output: 1e-10 in float64, 1e-5 in float32.

    Args:
        before: The network as it was, in eval mode.
        after: The folded one.
        example_inputs: As for `reparameterize`.
        sizes: Other spatial sizes to run too, such as ``[(96, 160)]``; by default one more that the network takes, or a note that it
            takes none.
        report: The fold's report: the certificate then names the folded place whose output differs most.

    Raises:
        ValueError: one of them is in training mode.

    Example:
        >>> conv = nn.Conv2d(3, 8, 3).eval()
        >>> bool(verify(conv, conv, torch.zeros(1, 3, 9, 9)))
        True
    """
    args, kwargs = arguments(example_inputs)
    return verify_modules(unwrap(before)[0], unwrap(after)[0], args, kwargs, sizes, report)
