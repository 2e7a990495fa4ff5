"""What a verb needs of a network, whatever its form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from unbranch.detect.errors import InputError
from unbranch.fold.certificate import Certificate
from unbranch.fold.report import Report
from unbranch.runtimes.timing import Paired

FoldOptions: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """How a network is named on the command line."""

    spec: str
    weights: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    sizes: Sequence[str] | None = None
    batch: int | None = None


@runtime_checkable
class Network(Protocol):
    """A network that can be folded, compared, written and timed."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user about what was read."""
        ...

    @property
    def runtimes(self) -> tuple[str, ...]:
        """What times it, where nothing else is asked for."""
        ...

    def explain(self, options: FoldOptions) -> Report:
        """What would fold."""
        ...

    def reparameterize(self, options: FoldOptions) -> tuple["Network", Report]:
        """The folded network and its report."""
        ...

    def verify(self, after: "Network", report: Report | None) -> Certificate:
        """How far this network and the one `after` are apart."""
        ...

    def counterpart(self, spec: str) -> "Network":
        """The network of a name, to be compared with this one."""
        ...

    def check_target(self, target: Path) -> None:
        """Raise `InputError` for a file that it cannot be written as."""
        ...

    def save(self, target: Path) -> Certificate | None:
        """Write it whole or not at all; the certificate is of the file, where that is another form."""
        ...

    def time(self, after: "Network", runtimes: Sequence[str], **options: Any) -> dict[str, Paired]:
        """Times of this network and the one `after`, by runtime."""
        ...


def without_trust(options: FoldOptions, form: str) -> dict[str, Any]:
    """The options of a form that is a whole graph, in which nothing has to be taken on trust."""
    if options.get("trust", "witnessed") != "witnessed":
        raise InputError(f"--trust is for modules: {form} is a whole graph and needs none")
    return {name: value for name, value in options.items() if name != "trust"}


def refuse_module_options(asked: Asked, form: str) -> None:
    """Raise `InputError` where an option is given that only a module has."""
    for name, given in (("--weights", asked.weights), ("--option", asked.options)):
        if given:
            raise InputError(f"{name} is for modules: {asked.spec} is {form} and has its own")
