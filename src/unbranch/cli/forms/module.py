"""A `torch.nn.Module`, by name or by factory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unbranch import __version__, verbs
from unbranch.checkpoints import load
from unbranch.cli.forms.network import Asked, FoldOptions, Network
from unbranch.cli.shapes import examples
from unbranch.cli.sources import build
from unbranch.deploy.bench import benchmark
from unbranch.deploy.weights import save_weights
from unbranch.detect.errors import InputError
from unbranch.fold.certificate import Certificate
from unbranch.fold.report import Report
from unbranch.runtimes.timing import Paired


@dataclass(frozen=True)
class ModuleNetwork:
    """A module with the inputs that it is recorded on."""

    asked: Asked
    model: nn.Module
    inputs: tuple[Tensor, ...]
    notes: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ("torch", "onnxruntime", "openvino")

    @classmethod
    def open(cls, asked: Asked) -> "ModuleNetwork":
        """Build the model, load its weights, and find an input that it takes."""
        model = build(asked.spec, asked.options)
        if asked.weights is None:
            notes = (f"no --weights: {asked.spec} has the values it was made with",)
        else:
            notes = (str(load(model, asked.weights)),)
        return cls(asked, model, examples(model, asked.sizes, asked.batch), notes)

    def explain(self, options: FoldOptions) -> Report:
        """See `Network`."""
        return verbs.explain(self.model, self.inputs, **options)

    def reparameterize(self, options: FoldOptions) -> tuple["ModuleNetwork", Report]:
        """See `Network`."""
        model, report = verbs.reparameterize(self.model, self.inputs, return_report=True, **options)
        return replace(self, model=model, notes=()), report

    def verify(self, after: Network, report: Report | None) -> Certificate:
        """See `Network`."""
        return verbs.verify(self.model, _module(after).model, self.inputs, report=report)

    def counterpart(self, spec: str) -> Network:
        """A file of weights is those of this network, folded; anything else is a model of its own."""
        if spec.endswith(".safetensors"):
            folded, _ = self.reparameterize({})
            load(folded.model, spec)
            return folded
        return ModuleNetwork.open(Asked(spec, sizes=["x".join(map(str, t.shape)) for t in self.inputs]))

    def check_target(self, target: Path) -> None:
        """See `Network`."""
        if target.suffix not in (".safetensors", ".onnx"):
            raise InputError(f"--out {target}: weights are written as .safetensors, networks as .onnx")

    def save(self, target: Path) -> Certificate | None:
        """Weights as safetensors, or the network as ONNX, which is run against torch before it gets its name."""
        if target.suffix == ".onnx":
            from unbranch.deploy.onnx_file import export_onnx

            return export_onnx(self.model, self.inputs, target)
        save_weights(self.model, target, {"model": self.asked.spec, "unbranch": __version__})
        return None

    def time(self, after: Network, runtimes: Sequence[str], **options: Any) -> dict[str, Paired]:
        """See `Network`."""
        return benchmark(self.model, _module(after).model, self.inputs, runtimes, **options)


def _module(network: Network) -> ModuleNetwork:
    if not isinstance(network, ModuleNetwork):
        raise InputError("a module can only be compared with a module")
    return network
