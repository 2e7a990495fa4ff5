"""The one mechanism of every block: branches that are summed, then attention and activation."""

import re
from collections.abc import Callable, Mapping
from itertools import chain
from math import prod
from typing import Any, ClassVar, Self, TypeAlias, Unpack, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbranch.blocks.activation import Activation, activation_layer
from unbranch.blocks.attention import SqueezeExcite
from unbranch.blocks.deployable import Deployable
from unbranch.blocks.merged import (
    Plans,
    Training,
    TrainingPlan,
    any_global_hook,
    check_training,
    hook_of,
    plain,
    run_sum,
)
from unbranch.blocks.spec import Axes, ConvSpec, SpecOptions
from unbranch.frontends.modules import to_affine, to_convolution

_FOLDED = re.compile(r"branches\.(\d+\.|conv\.)?(weight|bias)")
_OTHER_FORM = {
    True: "The state dict is in deploy form, one convolution for each block, and the branches cannot be recovered from it: "
    "call eval() and switch_to_deploy() on the network, then load.",
    False: "The network is in deploy form and cannot go back to the branches that the state dict holds: load it into the network "
    "as it is built, then switch_to_deploy().",
}


class Branches(nn.Module):
    """The training form of a block's linear part: anything that is one convolution in eval mode.

    Subclass it for a recipe that is more than a sum; ``Sum`` serves nearly all.
    """

    def take_up(self, kernel: Tensor, shift: Tensor) -> tuple[nn.Parameter, ...]:
        """Add ``kernel``, (out, in / groups, *k), and ``shift``, (out,), to the map, in eval mode, by one branch's parameters.

        Those of that branch are returned, as what a trained convolution lives on in; none, and nothing changed, where no branch can.
        """
        return ()

    def last_norms(self) -> list[nn.Module]:
        """The norms whose outputs are summed, or the one behind the sum; none where some part of the output passes no norm last."""
        return []


class Sum(Branches):
    """y = norm(sum_b branch_b(x)), the branches by name; without ``norm``, the sum itself.

    Shapes: (N, C_in, *size) -> (N, C_out, *out), the same for every branch.
    Raises ValueError for no branch at all and for a branch named "norm".
    """

    merging: Training = "auto"
    """How branches that end in batch norms train: ``BlockOptions.training``."""
    _plans: Plans | None = None

    def __init__(self, branches: Mapping[str, nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        if not branches or "norm" in branches:
            raise ValueError(
                f"a sum needs one branch or more, none of them named 'norm', got {list(branches)}"
            )
        self.names = tuple(branches)
        for name, branch in branches.items():
            self.add_module(name, branch)
        self.norm = nn.Identity() if norm is None else norm

    def merges(self, x: object) -> bool:
        """Whether a plan is asked for at all: in training, as it is run and not traced, where the option allows it."""
        return self.training and self.merging != "branches" and not torch.compiler.is_compiling() and plain(x)

    def training_plan(self, x: Float[Tensor, "n c_in *size"]) -> TrainingPlan:
        """Which branches train as one convolution on an input like ``x``, and why the others do not."""
        if self._plans is None:
            self._plans = Plans()
        return self._plans.plan(self._modules, self.names, x, self.merging, self.training)

    def train(self, mode: bool = True) -> Self:
        """As every module; what was planned for training is forgotten where it ends."""
        if not mode:
            self._plans = None
        return super().train(mode)

    @torch.no_grad()
    def take_up(self, kernel: Tensor, shift: Tensor) -> tuple[nn.Parameter, ...]:
        """The first branch that can takes it, by as much more as the norm of the sum makes it less."""
        scale = scale_of(self.norm, kernel)
        kernel, shift = kernel / per_output(scale, kernel), shift / scale
        for name in self.names:
            branch = self.get_submodule(name)
            taken = (
                branch.take_up(kernel, shift)
                if isinstance(branch, Branches)
                else _take_up(branch, kernel, shift)
            )
            if taken:
                return taken
        return ()

    def last_norms(self) -> list[nn.Module]:
        """The norm of the sum, or those that end the branches, if all of them end in one."""
        if not isinstance(self.norm, nn.Identity):
            return [self.norm]
        ends = [_last_norms(self.get_submodule(name)) for name in self.names]
        return [norm for end in ends for norm in end] if all(ends) else []

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(
        self, x: Float[Tensor, "n c_in *size"], relu: nn.Module | None = None
    ) -> Float[Tensor, "n c_out *out"]:
        """Add up the branches, in training those together that can be; then ``relu``, which takes a pass less together with them."""
        if self.merges(x):
            plan = self.training_plan(x)
            if plan.merged or plan.normed:
                ends = relu is not None and type(self.norm) is nn.Identity
                total = self.norm(run_sum(plan, x, self._modules, rectifies=ends))
                return total if ends or relu is None else relu(total)
        total = None
        for name in self.names:
            own = getattr(self, name)(x)
            total = own if total is None else total + own
        total = self.norm(total)
        return total if relu is None else relu(total)


def _last_norms(branch: nn.Module) -> list[nn.Module]:
    if isinstance(branch, Branches):
        return branch.last_norms()
    last = branch[-1] if isinstance(branch, nn.Sequential) else branch
    return [last] if isinstance(last, _BatchNorm) else []


@torch.no_grad()
def _take_up(branch: nn.Module, kernel: Tensor, shift: Tensor) -> tuple[nn.Parameter, ...]:
    """``w += kernel / s`` and the shift, where the branch is a convolution of that size, with a norm of scale s or a bias."""
    layers = list(branch) if isinstance(branch, nn.Sequential) else [branch]
    rest = [layer for layer in layers if not type(layer).__name__.endswith(("Pad1d", "Pad2d", "Pad3d"))]
    if len(rest) > 2 or not isinstance(rest[0], nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return ()
    convolution, last = rest[0], rest[-1]
    bias = last._parameters.get("bias")
    if convolution.kernel_size != kernel.shape[2:] or bias is None:
        return ()
    scale = scale_of(None if last is convolution else last, kernel)
    convolution.weight.add_(kernel / per_output(scale, kernel))
    bias.add_(shift)
    return tuple(branch.parameters())


def scale_of(norm: nn.Module | None, kernel: Tensor) -> Tensor:
    """What a norm in eval mode multiplies each output channel of ``kernel``, (out, in / groups, *k), with."""
    if norm is None or isinstance(norm, nn.Identity):
        return kernel.new_ones(len(kernel))
    return to_affine(norm, kernel.new_ones((1, len(kernel), *kernel.shape[2:]))).weight.flatten()


def per_output(values: Tensor, kernel: Tensor) -> Tensor:
    """One number an output channel, to be multiplied with ``kernel``."""
    return values.reshape(-1, *(1,) * (kernel.ndim - 1))


Recipe: TypeAlias = Callable[[ConvSpec], Branches]


class BlockOptions(SpecOptions, total=False):
    """What every block takes besides channels, kernel and stride."""

    activation: Activation
    """A name, a factory, a module or None; ``"relu"`` by default."""
    se: float | None
    """Squeeze-and-excite before the activation: squeezed channels / channels; None, the default, for none."""
    training: Training
    """``"auto"``, the default: on the CPU, branches that end in batch norms train as one convolution where that saves work or memory, the
    same outputs, gradients and running statistics; ``"merged"``: wherever it is exact; ``"branches"``: never. In channels-last the
    norms of the others are computed in one call. ``Sum.training_plan`` says what is done."""


class Block(Deployable, nn.Module):
    """y = activation(attention(branches(x))), where ``branches`` folds into one convolution.

    A recipe makes the branches from a ``ConvSpec``; it holds no fold code: ``switch_to_deploy()`` records the
    ops that the branches run and puts the convolution they amount to in their place.

    A class of blocks names its ``recipe``, or passes one that its own options complete.

    Shapes: (N, in_channels, *size) -> (N, out_channels, *ceil(size / stride)), with ``padding`` that of the plain convolution.
    Raises ValueError for options that do not make a convolution, with the values.
    """

    recipe: ClassVar[Recipe]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Axes = 3,
        stride: Axes = 1,
        recipe: Recipe | None = None,
        *,
        activation: Activation = "relu",
        se: float | None = None,
        training: Training = "auto",
        **options: Unpack[SpecOptions],
    ) -> None:
        super().__init__()
        check_training(training)
        spec = ConvSpec.of(in_channels, out_channels, kernel_size, stride, **options)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.example_size = spec.example_size
        self.branches: nn.Module = (recipe or type(self).recipe)(spec)
        for module in self.branches.modules():
            if isinstance(module, Sum):
                module.merging = training
        self.attention = None if se is None else SqueezeExcite(out_channels, se, dims=spec.dims)
        self.activation = activation_layer(activation)
        self.register_load_state_dict_pre_hook(say_form)

    @no_type_check  # a recording would take the check's reading of sizes for ours
    def forward(self, x: Float[Tensor, "n c_in *size"]) -> Float[Tensor, "n c_out *out"]:
        """Branches, attention, activation."""
        if type(self.branches) is Sum and self.branches.merges(x) and self._ends_in_relu(self.branches):
            return self.branches(x, self.activation)
        y = self.branches(x)
        if self.attention is not None:
            y = self.attention(y)
        return self.activation(y)

    def _ends_in_relu(self, branches: Sum) -> bool:
        """Whether nothing but a plain ReLU is done with the sum, and nobody looks at it before."""
        return (
            self.attention is None
            and type(self.activation) is nn.ReLU
            and not any_global_hook()
            and all(hook_of(layer) is None for layer in (branches, branches.norm, self.activation))
        )

    def deploy_children(self) -> dict[str, nn.Module]:
        """The convolution that ``branches`` equals in eval mode; nothing where it stands there already."""
        if not isinstance(self.branches, Branches):
            return {}
        if any(module.training for module in self.branches.modules()):
            raise ValueError("in training mode, where a norm is no fixed map: call eval() first")
        return {"branches": to_convolution(self.branches, self._example())}

    def _example(self) -> Tensor:
        """A small input on the branches' device and in their dtype, without drawing a random number."""
        like = next(
            t for t in chain(self.branches.parameters(), self.branches.buffers()) if t.is_floating_point()
        )
        shape = (1, self.in_channels, *self.example_size)
        return torch.linspace(-1, 1, prod(shape), dtype=like.dtype, device=like.device).reshape(shape)


def say_form(
    module: nn.Module, state: Mapping[str, Any], prefix: str, _: Any, strict: bool, *said: list[str]
) -> None:
    """Before a module with ``branches`` loads a state dict of the other form: say so, once, beside the keys."""
    below = [name for name in state if name.startswith(f"{prefix}branches.")]
    if not strict or not below:
        return
    own = [name for name, _ in module.named_parameters() if name.startswith("branches.")]
    folded = all(_FOLDED.fullmatch(name, len(prefix)) for name in below)
    errors = said[-1]
    if folded != all(map(_FOLDED.fullmatch, own)) and (text := _OTHER_FORM[folded]) not in errors:
        errors.append(text)
