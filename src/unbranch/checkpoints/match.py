"""Which of a file's tensors is which of a model's."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from unbranch.blocks import Block, Branches
from unbranch.checkpoints.dialects import DIALECTS
from unbranch.checkpoints.files import prefix_lengths
from unbranch.expand import Expanded
from unbranch.ops.batch_norm import FoldedNorm

_PARALLEL = (
    "module.",
    "_orig_mod.",
)  # what DataParallel, DDP and torch.compile put before a model's own keys
_AVERAGED = "n_averaged"  # torch.optim.swa_utils.AveragedModel's counter, which stands beside its "module."
EXPANDED = "expanded"
STATISTICS = ".running_mean"
_FOLDED = re.compile(
    r"(\d+\.|conv\.)?(weight|bias)"
)  # what a convolution, or a pad and one, keep under "branches."


@dataclass(frozen=True)
class Target:
    """A model's tensors by name, wrappers' prefixes cut off, the form of each block by path, and the paths of expanded layers and of
    norms that were folded.
    """

    state: dict[str, Tensor]
    prefix: str
    blocks: dict[str, str]
    expanded: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> "Target":
        """The names that a checkpoint of this model has."""
        state = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
        *_, cut = prefix_lengths(state, _PARALLEL)
        prefix = next(iter(state), "")[:cut]
        paths = {
            f"{path}.".removeprefix(prefix).removesuffix("."): module
            for path, module in model.named_modules()
        }
        blocks = {path: _form_of(module) for path, module in paths.items() if isinstance(module, Block)}
        expanded = tuple(
            path
            for path, module in paths.items()
            if isinstance(module, Expanded) and isinstance(module.branches, Branches)
        )
        folded = tuple(path for path, module in paths.items() if isinstance(module, FoldedNorm))
        return cls({key[cut:]: value for key, value in state.items()}, prefix, blocks, expanded, folded)

    @property
    def form(self) -> str:
        """``"expanded"``, ``"training"``, ``"deploy"``, ``"mixed"``, or empty for a model without blocks."""
        if self.expanded:
            return EXPANDED
        forms = sorted(set(self.blocks.values()))
        return "mixed" if len(forms) > 1 else "".join(forms)

    def block_of(self, name: str) -> tuple[str, str] | None:
        """(path of the block, name below its branches), or None for a tensor outside all branches."""
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part == "branches" and ".".join(parts[:i]) in self.blocks:
                return ".".join(parts[:i]), ".".join(parts[i + 1 :])
        return None

    def means(self, name: str) -> bool:
        """Whether a tensor of that name belongs to the model in one form or another."""
        if name in self.state or self.block_of(name) is not None:
            return True
        parts = name.split(".branches.")
        heads = (".branches.".join(parts[:i]) for i in range(1, len(parts)))
        return any(f"{head}.weight" in self.state for head in heads)


@dataclass(frozen=True)
class Reading:
    """A file's tensors by our names, the names they have in the file, and whose names those are."""

    whose: str
    tensors: dict[str, Tensor]
    theirs: dict[str, str]

    def without(self, parts: tuple[str, ...]) -> "Reading":
        """The reading with all tensors of these parts left out."""
        return replace(self, tensors={name: t for name, t in self.tensors.items() if not within(name, parts)})

    def with_tied(self, target: Target) -> "Reading":
        """The reading with the tensors that the model ties to others filled in: safetensors keeps one of each."""
        kept = {_place(target.state[name]): name for name in self.tensors if name in target.state}
        tied = {
            name: self.tensors[kept[place]]
            for name, tensor in target.state.items()
            if name not in self.tensors and tensor.numel() and (place := _place(tensor)) in kept
        }
        return replace(self, tensors=self.tensors | tied)


def norms_in(names: Iterable[str]) -> tuple[str, ...]:
    """The paths of the norms that keep statistics, by the names of these."""
    return tuple(name.removesuffix(STATISTICS) for name in names if name.endswith(STATISTICS))


def within(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a tensor's name lies in one of the parts, given by their paths."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two names of one tensor."""
    return tensor.device, tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride()


def read_as(tensors: Mapping[str, Tensor], target: Target) -> Reading:
    """The tensors under the prefix and the dialect with which most keys mean something to the model.

    A name counts where the model has it, or where it lies under the branches of a block or of a convolution, so
    that another form of the same network is recognised as what it is.
    """
    keys = tuple(tensors)
    if _AVERAGED in keys and all(key == _AVERAGED or key.startswith("module.") for key in keys):
        keys = tuple(key for key in keys if key != _AVERAGED)
    whose, names = DIALECTS[0].whose, {key: key for key in keys}
    best = -1
    for cut in prefix_lengths(keys):
        for dialect in DIALECTS:
            ours = {dialect.translate(key[cut:]): key for key in keys}
            score = sum(target.means(name) for name in ours)
            if len(ours) == len(keys) and score > best:
                whose, names, best = dialect.whose, ours, score
    return Reading(whose, {name: tensors[key] for name, key in names.items()}, names)


def forms_in_file(names: Iterable[str], target: Target) -> dict[str, str]:
    """The form in which each block of the model stands in the file, by path."""
    below: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        found = target.block_of(name)
        if found is not None:
            below[found[0]].append(found[1])
    return {path: _form_in(tails) for path, tails in below.items()}


def _form_of(block: Block) -> str:
    if isinstance(block.branches, Expanded):
        return EXPANDED
    return "training" if isinstance(block.branches, Branches) else "deploy"


def _form_in(tails: list[str]) -> str:
    """The form of a block by what it keeps under ``branches.``."""
    if all(tail.startswith("branches.") for tail in tails):
        return EXPANDED
    return "deploy" if all(_FOLDED.fullmatch(tail) for tail in tails) else "training"
