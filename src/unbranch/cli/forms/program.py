"""An exported program, in a `.pt2` file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from unbranch import verbs
from unbranch.cli.forms.network import (
    Asked,
    FoldOptions,
    Network,
    refuse_module_options,
    without_trust,
)
from unbranch.deploy.bench import benchmark
from unbranch.detect.errors import InputError
from unbranch.detect.files import replacing
from unbranch.fold.certificate import Certificate
from unbranch.fold.report import Report
from unbranch.frontends.exported import load_exported, save_exported
from unbranch.runtimes.timing import Paired


@dataclass(frozen=True)
class ProgramNetwork:
    """A program with the inputs that it was exported with."""

    path: str
    program: ExportedProgram
    notes: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ("torch", "onnxruntime", "openvino")

    @classmethod
    def open(cls, asked: Asked) -> "ProgramNetwork":
        """Read the file; the inputs are in it."""
        refuse_module_options(asked, "an exported program")
        if asked.sizes or asked.batch:
            raise InputError(f"{asked.spec} holds its own example inputs: leave --input-size and --batch out")
        return cls(asked.spec, load_exported(asked.spec))

    def explain(self, options: FoldOptions) -> Report:
        """See `Network`."""
        return verbs.explain(self.program, **without_trust(options, self.path))

    def reparameterize(self, options: FoldOptions) -> tuple["ProgramNetwork", Report]:
        """See `Network`."""
        program, report = verbs.reparameterize(
            self.program, return_report=True, **without_trust(options, self.path)
        )
        return replace(self, program=program), report

    def verify(self, after: Network, report: Report | None) -> Certificate:
        """See `Network`."""
        return verbs.verify(self.program, _program(after).program, report=report)

    def counterpart(self, spec: str) -> Network:
        """See `Network`."""
        return ProgramNetwork.open(Asked(spec))

    def check_target(self, target: Path) -> None:
        """See `Network`."""
        if target.suffix != ".pt2":
            raise InputError(f"--out {target}: an exported program is written as .pt2")

    def save(self, target: Path) -> Certificate | None:
        """See `Network`."""
        with replacing(target) as part:
            save_exported(self.program, part)
        return None

    def time(self, after: Network, runtimes: Sequence[str], **options: Any) -> dict[str, Paired]:
        """See `Network`."""
        if self.program.example_inputs is None:
            raise InputError(f"{self.path}: it holds no example inputs to be timed on")
        args, kwargs = self.program.example_inputs
        if kwargs or not all(isinstance(arg, Tensor) for arg in args):
            raise InputError(f"{self.path}: only programs that take tensors by position can be timed")
        other = _program(after).program
        return benchmark(self.program.module(), other.module(), args, runtimes, **options)


def _program(network: Network) -> ProgramNetwork:
    if not isinstance(network, ProgramNetwork):
        raise InputError("an exported program can only be compared with an exported program")
    return network
