"""Certificates: equal models pass, wrong ones fail, in every type; inputs are drawn or checked."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.frontends.onnx.models import exported, ops, written
from tests.frontends.onnx.test_folding import BRANCH_WEIGHTS, BRANCHES
from tests.graphs import FilledBorder
from tests.support import randomize
from unbranch.frontends.onnx import OnnxError, reparameterize_onnx, verify_onnx

SINGLE = BRANCHES.replace("double", "float")
FREE = SINGLE.replace("[2,4,7,9]", "[n,4,h,w]")


def spoilt(model: onnx.ModelProto) -> onnx.ModelProto:
    """One weight a little off."""
    worse = onnx.ModelProto.FromString(model.SerializeToString())
    tensor = worse.graph.initializer[0]
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[0] += 1e-2
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return worse


@pytest.mark.parametrize("text", [SINGLE, FREE, BRANCHES], ids=["fixed", "any size", "float64"])
def test_a_fold_passes_and_a_spoilt_one_fails(text: str) -> None:
    model = written(text, BRANCH_WEIGHTS)
    after, report = reparameterize_onnx(model)
    certificate = verify_onnx(model, after, report=report)
    assert certificate, str(certificate)
    assert certificate.worst_place is not None
    assert certificate.worst_place.startswith("Conv (a)")
    assert {check.size for check in certificate.checks} == (
        {"1x4x33x35", "3x4x65x67"} if text is FREE else {"2x4x7x9"}
    )
    assert any("fixed" in note for note in certificate.notes) is (text is not FREE)
    assert not verify_onnx(model, spoilt(after))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_folds_in_float64_and_is_verified_with_its_weights_widened(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    network = randomize(FilledBorder(4, 6, True), generator).to(dtype)
    model = exported(network, torch.randn(1, 4, 9, 11).to(dtype))
    after, report = reparameterize_onnx(model)
    assert ops(after) == {"Conv": 1}
    kinds = {onnx.helper.tensor_dtype_to_np_dtype(t.data_type).name for t in after.graph.initializer}
    assert kinds == {str(dtype).removeprefix("torch.")}
    certificate = verify_onnx(model, after, report=report)
    assert certificate, str(certificate)
    assert "in float32" in certificate.checks[0].dtype


def test_the_callers_inputs_and_sizes_are_run() -> None:
    model = written(FREE, BRANCH_WEIGHTS)
    after, _ = reparameterize_onnx(model)
    given = torch.randn(2, 4, 6, 5)
    for inputs in (given, [given], {"x": given.numpy()}):
        certificate = verify_onnx(model, after, inputs, sizes=[(10, 20)])
        assert certificate
        assert [check.size for check in certificate.checks] == ["2x4x6x5", "1x4x10x20"]
    with pytest.raises(ValueError, match="example inputs wrong, but the model takes x"):
        verify_onnx(model, after, {"wrong": given})
    with pytest.raises(ValueError, match="2 example inputs for a model with 1"):
        verify_onnx(model, after, [given, given])
    with pytest.raises(ValueError, match="2 symbolic sizes"):
        verify_onnx(model, after, sizes=[(10,)])


def test_a_model_that_does_not_run_is_an_error_before_and_a_failure_after() -> None:
    model = written(SINGLE, BRANCH_WEIGHTS)
    other = written("g (float[2,4,7,9] z) => (float[2,4,7,9] y) {y = Neg (z)}", {})
    assert not verify_onnx(model, other)
    broken = written(
        "g (float[1,4,a,b] x) => (float[1,4,c,d] y) {y = Reshape (x, target)}",
        {"target": np.array([1, 4, 3, 999])},
    )
    with pytest.raises(OnnxError, match="pass example_inputs"):
        verify_onnx(broken, broken)
    with pytest.raises(OnnxError, match="before folding does not run at 2x5x7x9"):
        verify_onnx(model, model, torch.zeros(2, 5, 7, 9))


def test_an_output_that_depends_on_no_size_is_compared_too(generator: torch.Generator) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.norm(self.conv(x))
            return y, y.mean(dim=(2, 3)).argmax(1)

    example = torch.randn(2, 4, 9, 9)
    model = exported(randomize(Two(), generator, example), example, dynamic={"x0": {0: "n", 2: "h", 3: "w"}})
    after, report = reparameterize_onnx(model)
    assert report.changed
    certificate = verify_onnx(model, after, example)
    assert certificate, str(certificate)
    assert len({check.output for check in certificate.checks}) == 2
