"""The one error of this package, and how a long list of keys is said in a line."""

from collections import defaultdict
from collections.abc import Iterable

_GROUPS = 6


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded as it stands; the model is untouched.

    The message is one line. ``missing`` (names of the model), ``left_over`` (names of the file) and
    ``mismatched`` (names of the model) hold the keys in full.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: tuple[str, ...] = (),
        left_over: tuple[str, ...] = (),
        mismatched: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.left_over = left_over
        self.mismatched = mismatched


def summary(keys: Iterable[str]) -> str:
    """The keys in a few groups, as fine as fits: a group is its common beginning and its count.

    >>> summary([f"stem.{i}.weight" for i in range(9)] + ["head.bias"])
    'stem.* (9), head.bias'
    """
    keys = list(keys)
    depth, groups = 1, _grouped(keys, 1)
    while len(finer := _grouped(keys, depth + 1)) <= _GROUPS and finer != groups:
        depth, groups = depth + 1, finer
    shown = sorted(groups.items(), key=lambda group: len(group[1]), reverse=True)[:_GROUPS]
    text = ", ".join(own[0] if len(own) == 1 else f"{start}.* ({len(own)})" for start, own in shown)
    rest = len(groups) - len(shown)
    return f"{text} and {rest} more groups" if rest else text


def _grouped(keys: list[str], depth: int) -> dict[str, list[str]]:
    """The keys by their first ``depth`` parts, by themselves where they have no more."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        groups[".".join(key.split(".")[:depth])].append(key)
    return dict(groups)
