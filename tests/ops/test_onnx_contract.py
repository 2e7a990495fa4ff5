"""Every ONNX spelling of the table: its record means what the specification's reference computes, and its signature is the schema."""

import inspect
import random
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from tests.ops.examples import Call, X, t
from tests.ops.meaning import meaning
from tests.ops.onnx_examples import EXAMPLES, ints
from unbranch.affine import NotLinear
from unbranch.ops import TABLE, Map, Operand, Sum, read
from unbranch.ops.table import Concat

SPELLINGS = sorted(spelling for spelling in TABLE if spelling.startswith("onnx."))
DRAWS = 16
OPSET = 22


def arguments(call: Call) -> tuple[list[Any], list[Tensor]]:
    """The inputs as a reader sees them, and the tensors behind its operands in order."""
    values: list[Tensor] = []
    args: list[Any] = []
    for argument in call.args:
        if isinstance(argument, X):
            args.append(Operand(tuple(argument.value.shape), argument.value.dtype, len(values)))
            values.append(argument.value)
        else:
            args.append(argument)
    return args, values


def run(spelling: str, call: Call) -> list[Tensor]:
    arrays = [a.value if isinstance(a, X) else a for a in call.args]
    names = ["" if a is None else f"i{n}" for n, a in enumerate(arrays)]
    outputs = call.kwargs.get(
        "num_outputs", len(call.args[1]) if spelling == "onnx.Split" and len(call.args) > 1 else 1
    )
    node = onnx.helper.make_node(
        spelling.removeprefix("onnx."), names, [f"o{i}" for i in range(outputs)], **call.kwargs
    )
    feeds = {name: np.asarray(a) for name, a in zip(names, arrays, strict=True) if name}
    inputs = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feeds.items()
    ]
    describe = onnx.helper.make_tensor_value_info
    if spelling == "onnx.SplitToSequence":
        describe = onnx.helper.make_tensor_sequence_value_info
    made = [describe(name, onnx.TensorProto.DOUBLE, None) for name in node.output]
    graph = onnx.helper.make_graph([node], "g", inputs, made)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    if spelling == "onnx.ConvTranspose":  # the reference has no dilation, and images only
        return [_transposed_by_the_runtime(model, feeds)]
    results: Any = ReferenceEvaluator(model).run(None, feeds)
    flat = results[0] if isinstance(results[0], list) else results
    return [torch.from_numpy(np.array(result)) for result in flat]


def _transposed_by_the_runtime(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> Tensor:
    """ONNX Runtime has it in float32 alone."""
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    model.ir_version = 10
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {name: array.astype(np.float32) for name, array in feeds.items()})
    return torch.from_numpy(np.asarray(result)).double()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_onnx_record_means_what_the_reference_computes(spelling: str) -> None:
    assert spelling in EXAMPLES, "add an example of it to tests/ops/onnx_examples.py"
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        call = EXAMPLES[spelling](random.Random(seed))
        args, values = arguments(call)
        records = read(spelling, args, call.kwargs)
        computed = run(spelling, call)
        assert len(records) == len(computed)
        for record, expected in zip(records, computed, strict=True):
            assert record is not None
            found = meaning(record, values if isinstance(record, Sum | Concat) else values[:1])
            shapes = [tuple((a.value if isinstance(a, X) else a).shape) for a in call.args if a is not None]
            said = f"seed {seed}: {shapes} {call.kwargs}: {type(record).__name__}"
            assert found.shape == expected.shape, said
            limit = 1e-4 if spelling == "onnx.ConvTranspose" else 1e-10
            assert float((found - expected).abs().max()) <= limit, said


def test_an_example_of_what_is_not_read_is_noticed() -> None:
    assert set(EXAMPLES) == set(SPELLINGS)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_reader_takes_what_the_schemas_of_its_op_have(spelling: str) -> None:
    """Inputs by position, attributes by name with the schema's defaults, of every version from opset 13 to the newest."""
    name = spelling.removeprefix("onnx.")
    parameters = TABLE[spelling].signature.parameters.values()
    attributes = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    inputs = [p for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    newest = onnx.defs.onnx_opset_version()
    first = max(
        13,
        min(
            s.since_version
            for s in onnx.defs.get_all_schemas_with_history()
            if s.name == name and not s.domain
        ),
    )
    schemas = {
        onnx.defs.get_schema(name, version, "").since_version: version for version in range(first, newest + 1)
    }
    known: set[str] = set()
    for version in schemas.values():
        schema = onnx.defs.get_schema(name, version, "")
        known |= set(schema.attributes)
        variadic = inputs[0].kind is inspect.Parameter.VAR_POSITIONAL
        assert variadic or len(schema.inputs) <= len(inputs)
        if not variadic:
            optional = [i.option == onnx.defs.OpSchema.FormalParameterOption.Optional for i in schema.inputs]
            ours = [p.default is None for p in inputs[: len(optional)]]
            assert ours == optional or name in ("Split", "SplitToSequence"), f"{name}-{schema.since_version}"
        for key, attribute in schema.attributes.items():
            assert key in attributes, f"{name}-{schema.since_version} has an attribute {key}"
            if attribute.required:
                assert attributes[key] is inspect.Parameter.empty
            elif attribute.default_value.name:
                theirs = onnx.helper.get_attribute_value(attribute.default_value)
                theirs = theirs.decode() if isinstance(theirs, bytes) else theirs
                assert attributes[key] == pytest.approx(theirs), f"{name}-{schema.since_version}: {key}"
    assert set(attributes) == known


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_unknown_attribute_is_refused(spelling: str) -> None:
    call = EXAMPLES[spelling](random.Random(0))
    with pytest.raises(NotLinear, match="unknown_attribute"):
        read(spelling, arguments(call)[0], call.kwargs | {"unknown_attribute": 1})


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_op_on_constants_alone_is_refused(spelling: str) -> None:
    call = EXAMPLES[spelling](random.Random(0))
    with pytest.raises(NotLinear):
        read(spelling, [a.value if isinstance(a, X) else a for a in call.args], call.kwargs)


def value(*shape: int) -> Operand:
    return Operand(shape, torch.float64, 0)


REFUSALS: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("Conv", [value(1, 4, 5, 5), value(4, 4, 3, 3)], {}, "the weight depends on the input"),
    ("Conv", [value(1, 4, 5, 5), t(4, 4, 3, 3), value(4)], {}, "the bias depends on the input"),
    ("Conv", [value(1, 4, 5, 5), t(4, 4, 3, 3)], {"auto_pad": "ELSE"}, "auto_pad 'ELSE'"),
    ("ConvTranspose", [value(1, 4, 5, 5), t(4, 4, 3, 3)], {"output_shape": [9, 9]}, "size of its output"),
    ("ConvTranspose", [value(1, 4, 5, 5), t(4, 4, 3, 3)], {"auto_pad": "SAME_UPPER"}, "size of its output"),
    (
        "BatchNormalization",
        [value(1, 4, 5, 5), *[t(4)] * 4],
        {"training_mode": 1},
        "the batch's own statistics",
    ),
    ("Dropout", [value(1, 4), torch.tensor(0.5), torch.tensor(True)], {}, "dropout in training"),
    ("Mul", [value(1, 4, 5, 5), value(1, 4, 5, 5)], {}, "a product of two values"),
    ("Div", [t(4, 1, 1), value(1, 4, 5, 5)], {}, "a division by a value"),
    ("Add", [value(1, 4, 5, 5), value(1, 4, 1, 1)], {}, "a sum that broadcasts"),
    ("Add", [value(1, 4, 5, 5), t(4, 5, 5)], {}, "differs from position to position"),
    ("Sum", [value(1, 4), value(1, 1)], {}, "a sum that broadcasts"),
    ("Sum", [value(1, 4), value(1, 4), t(1)], {}, "2 values and 1 constants"),
    ("Gemm", [value(4, 3), t(4, 5)], {"transA": 1}, "the transposed value"),
    ("MatMul", [value(1, 3, 4), value(1, 4, 5)], {}, "depends on the input"),
    ("MatMul", [value(1, 3, 4), t(1, 4, 5)], {}, "a matrix of shape"),
    ("MatMul", [t(5, 4), value(2, 2, 4, 3)], {}, "times a value of shape"),
    ("Pad", [value(1, 4, 5, 5), value(8)], {}, "the padding depends on the input"),
    ("Pad", [value(1, 4, 5, 5), ints(0, 1, 0, 0, 0, 0, 0, 0)], {"mode": "reflect"}, "batch or channel axis"),
    ("Concat", [value(1, 4, 5, 5), t(1, 4, 5, 5)], {"axis": 1}, "not spatial"),
    ("Concat", [value(1, 4, 5), value(1, 4, 5), t(1, 4, 1)], {"axis": 2}, "2 values and 1 constants"),
    ("Slice", [value(1, 4, 5, 5), ints(1, 1), ints(4, 4), ints(2, 3)], {}, "along 2 axes"),
    ("Slice", [value(1, 4, 5, 5), ints(-1), ints(-6), ints(2), ints(-1)], {}, "step -1"),
    ("Gather", [value(1, 4, 5, 5), torch.tensor(0)], {"axis": 1}, "indices of shape"),
    ("Gather", [value(1, 4, 5, 5), value(2)], {"axis": 1}, "the indices depends on the input"),
    ("Split", [value(1, 4)], {"axis": 1}, "without sizes"),
    ("SplitToSequence", [value(1, 4)], {"axis": 1}, "single entries"),
    ("ScatterND", [value(2, 4, 5), ints(0, 0).reshape(1, 2), t(1, 5)], {}, "partial along 2 axes"),
    ("ScatterND", [value(4, 5), ints(1, 0).reshape(2, 1), t(2, 5)], {}, "no slab"),
    ("ScatterND", [value(4, 5), ints(0).reshape(1, 1), t(1, 5)], {"reduction": "add"}, "reduces by add"),
    ("Expand", [value(1, 4, 1), ints(1, 4, 3)], {}, "an expansion"),
    ("Squeeze", [value(1, 4, 1)], {}, "whatever axes are 1"),
]


@pytest.mark.parametrize(("name", "args", "attributes", "reason"), REFUSALS)
def test_what_is_not_linear_says_why(
    name: str, args: list[Any], attributes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(NotLinear, match=reason):
        read(f"onnx.{name}", args, attributes)


def test_ceil_mode_is_refused_where_its_last_window_may_hang_over() -> None:
    (record,) = read(
        "onnx.AveragePool", [value(1, 4, 5, 5)], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}
    )
    assert isinstance(record, Map)
    with pytest.raises(NotLinear, match="ceil_mode"):
        record.affine(4)
