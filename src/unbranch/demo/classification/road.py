"""The road: digits, a branched network, its folded copy, the proof, the file, the times, the pictures."""

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from unbranch import verbs
from unbranch.affine import Affine, regroup
from unbranch.blocks import Block, Sum
from unbranch.demo.classification.digits import load_digits
from unbranch.demo.classification.outcome import Outcome
from unbranch.demo.classification.results import draw, markdown
from unbranch.demo.classification.training import accuracy, predict, train
from unbranch.demo.stages import Stage, quietly
from unbranch.demo.tables import write_results
from unbranch.deploy import export_onnx, save_weights
from unbranch.deploy.bench import benchmark
from unbranch.deploy.weights import check_writable
from unbranch.frontends.modules import to_convolution
from unbranch.models import RepVGG

EPOCHS = 20
RUNTIMES = ("torch", "onnxruntime")
SHOWN_BLOCK = (0, 1)
"""Stage and block whose kernels are drawn: the first with all three branches."""
BRANCHES = {"dense0": "3x3 branch", "pointwise": "1x1 branch", "shortcut": "identity branch"}


def run(
    folder: Path, *, epochs: int = EPOCHS, seed: int = 0, pairs: int = 200, stage: Stage = quietly
) -> Outcome:
    """Walk the road; leave weights, ONNX, `results.md`, `results.json` and pictures in `folder`.

    Raises `InputError` where `folder` cannot be written, ModuleNotFoundError without the extra `demo`.
    """
    check_writable(folder / "results.json")
    with stage("reading 5,000 digits"):
        digits = load_digits()
    with stage("training") as progress:
        start = time.perf_counter()
        model = train(
            digits, epochs, seed, lambda step, steps, loss: progress(step, steps, f"loss {loss:.2f}")
        )
        seconds = time.perf_counter() - start
    example = digits.test[:1]
    with stage("folding, and running both"):
        folded, report = verbs.reparameterize(model, example, return_report=True)
        certificate = verbs.verify(model, folded, digits.test[:50], report=report)
        before, after = predict(model, digits.test), predict(folded, digits.test)
    with stage("writing weights and ONNX"):
        save_weights(model, folder / "branched.safetensors", {"form": "training"})
        save_weights(folded, folder / "folded.safetensors", {"form": "deploy"})
        onnx_certificate = export_onnx(folded, (example,), folder / "folded.onnx")
    with stage("timing in torch and ONNX Runtime"):
        times = benchmark(model, folded, (example,), RUNTIMES, pairs=pairs, seconds=15.0)
    outcome = Outcome(
        accuracy(before, digits.test_labels),
        accuracy(after, digits.test_labels),
        int((before.argmax(1) == after.argmax(1)).sum()),
        len(digits.test),
        report,
        certificate,
        onnx_certificate,
        times,
        seconds,
    )
    with stage("drawing"):
        write_results(folder, outcome.to_dict(), markdown(outcome))
        draw(outcome, folder, digits, after, kernels(model))
    return outcome


def kernels(model: RepVGG) -> tuple[dict[str, Tensor], Tensor]:
    """The kernels of one block's branches, each as 3x3, and of the convolution that they become together."""
    stage, number = SHOWN_BLOCK
    block = model.get_submodule(f"stages.{stage}.{number}")
    if not isinstance(block, Block) or not isinstance(block.branches, Sum):
        raise TypeError(f"block {stage}.{number} has no branches: it is in deploy form")
    branches, example = block.branches, torch.zeros(1, block.in_channels, 9, 9)
    parts = {BRANCHES[name]: _kernel(branches.get_submodule(name), example) for name in branches.names}
    return parts, _kernel(branches, example)


def _kernel(module: nn.Module, example: Tensor) -> Tensor:
    """The 3x3 kernel, (out, in, 3, 3), of what is affine as a whole: a smaller one in its middle, groups written out."""
    convolution = to_convolution(module, example)
    if not isinstance(convolution, nn.Conv2d):
        raise TypeError(f"{type(module).__name__} needs more than a convolution")
    weight = convolution.weight.detach().unflatten(0, (convolution.groups, -1))
    dense = regroup(Affine(weight, None, (1, 1), ((0, 0), (0, 0)), (1, 1)), 1).module_weight()
    margin = (3 - dense.shape[-1]) // 2
    return nn.functional.pad(dense, [margin] * 4)
