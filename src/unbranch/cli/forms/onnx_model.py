"""An ONNX model, in a file."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from unbranch import verbs
from unbranch.cli.forms.network import (
    Asked,
    FoldOptions,
    Network,
    refuse_module_options,
    without_trust,
)
from unbranch.cli.shapes import SEED, shape
from unbranch.deploy.bench import benchmark
from unbranch.detect.errors import InputError
from unbranch.fold.certificate import Certificate
from unbranch.fold.report import Report
from unbranch.frontends.onnx import load_onnx, save_onnx
from unbranch.runtimes.timing import Paired

LIKELY_SIZE = 224
"""For a symbolic dimension behind the batch that nothing is said of."""


@dataclass(frozen=True)
class OnnxNetwork:
    """A model with the name of the file that it was read from."""

    asked: Asked
    model: ir.Model
    notes: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ("onnxruntime", "openvino")

    @classmethod
    def open(cls, asked: Asked) -> "OnnxNetwork":
        """Read the file, its external data included."""
        refuse_module_options(asked, "an ONNX model")
        network = cls(asked, load_onnx(asked.spec))
        if asked.sizes and len(asked.sizes) != len(network._needed()):
            raise InputError(
                f"--input-size is given {len(asked.sizes)} times, and {asked.spec} takes {len(network._needed())} inputs"
            )
        return network

    def explain(self, options: FoldOptions) -> Report:
        """See `Network`."""
        return verbs.explain(self.model, **without_trust(options, self.asked.spec))

    def reparameterize(self, options: FoldOptions) -> tuple["OnnxNetwork", Report]:
        """See `Network`."""
        model, report = verbs.reparameterize(
            self.model, return_report=True, **without_trust(options, self.asked.spec)
        )
        return replace(self, model=model), report

    def verify(self, after: Network, report: Report | None) -> Certificate:
        """On the sizes that were asked for, else on two that the model takes."""
        inputs = self._inputs() if self.asked.sizes or self.asked.batch else None
        return verbs.verify(self.model, _onnx(after).model, inputs, report=report)

    def counterpart(self, spec: str) -> Network:
        """See `Network`."""
        return OnnxNetwork.open(Asked(spec))

    def check_target(self, target: Path) -> None:
        """See `Network`."""
        if target.suffix != ".onnx":
            raise InputError(f"--out {target}: an ONNX model is written as .onnx")

    def save(self, target: Path) -> Certificate | None:
        """See `Network`."""
        target.parent.mkdir(parents=True, exist_ok=True)
        save_onnx(self.model, target)
        return None

    def time(self, after: Network, runtimes: Sequence[str], **options: Any) -> dict[str, Paired]:
        """See `Network`."""
        inputs = list(self._inputs().values())
        with tempfile.TemporaryDirectory() as folder:
            before, after_path = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
            save_onnx(self.model, before)
            save_onnx(_onnx(after).model, after_path)
            return benchmark(before, after_path, inputs, runtimes, **options)

    def _needed(self) -> list[ir.Value]:
        """The inputs that have no default."""
        return [value for value in self.model.graph.inputs if value.name not in self.model.graph.initializers]

    def _inputs(self) -> dict[str, Tensor]:
        """Seeded normal draws by name and in order, in the sizes asked for; a symbolic batch is 1, other symbols 224."""
        generator = torch.Generator().manual_seed(SEED)
        found = {}
        for index, value in enumerate(self._needed()):
            if value.shape is None or value.dtype is not ir.DataType.FLOAT:
                raise InputError(
                    f"{self.asked.spec}: the input {value.name!r} is not float32 of a known rank"
                )
            base = [
                d if isinstance(d, int) else LIKELY_SIZE if axis else self.asked.batch or 1
                for axis, d in enumerate(value.shape)
            ]
            wanted = shape(self.asked.sizes[index], base) if self.asked.sizes else tuple(base)
            found[str(value.name)] = torch.randn(wanted, generator=generator)
        return found


def _onnx(network: Network) -> OnnxNetwork:
    if not isinstance(network, OnnxNetwork):
        raise InputError("an ONNX model can only be compared with an ONNX model")
    return network
