"""Files, read and written whole or not at all; every kind of bad input is one clear line."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.frontends.onnx.models import written
from tests.frontends.onnx.test_folding import BRANCH_WEIGHTS, BRANCHES
from unbranch.frontends.onnx import (
    OnnxError,
    explain_onnx,
    load_onnx,
    reparameterize_onnx,
    save_onnx,
    verify_onnx,
)


@pytest.fixture
def model() -> onnx.ModelProto:
    return written(BRANCHES.replace("double", "float"), BRANCH_WEIGHTS)


def save_external(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "net.onnx"
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save_model(copy, path, save_as_external_data=True, location="net.bin", size_threshold=0)
    return path


def one_line(error: pytest.ExceptionInfo[OnnxError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_file_round_trips(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "in.onnx")
    after, report = reparameterize_onnx(load_onnx(tmp_path / "in.onnx"))
    save_onnx(after, tmp_path / "out.onnx")
    assert report.changed
    assert verify_onnx(load_onnx(tmp_path / "in.onnx"), load_onnx(tmp_path / "out.onnx"), report=report)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]


def test_external_data_stays_external(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = save_external(model, tmp_path)
    after, _ = reparameterize_onnx(load_onnx(path))
    save_onnx(after, tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.bin", "net.onnx", "out.onnx", "out.onnx.data"]
    assert (tmp_path / "out.onnx").stat().st_size < 2000
    assert verify_onnx(load_onnx(path), load_onnx(tmp_path / "out.onnx"))


def test_small_external_tensors_are_written_while_they_are_read(
    model: onnx.ModelProto, tmp_path: Path
) -> None:
    given = load_onnx(save_external(model, tmp_path))
    read = [value.const_value.numpy() for value in given.graph.initializers.values() if value.const_value]
    assert min(array.nbytes for array in read) < 256 < max(array.nbytes for array in read)
    after, report = reparameterize_onnx(given)
    assert verify_onnx(given, after, report=report)
    save_onnx(given, tmp_path / "net.onnx")
    assert verify_onnx(load_onnx(tmp_path / "net.onnx"), after)


def test_a_model_may_be_written_over_itself(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = save_external(model, tmp_path)
    save_onnx(load_onnx(path), tmp_path / "net.onnx")
    save_onnx(reparameterize_onnx(load_onnx(path))[0], path)
    assert verify_onnx(model, load_onnx(path))


def test_nothing_is_left_where_writing_fails(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = save_external(model, tmp_path)
    loaded = load_onnx(path)
    (tmp_path / "net.bin").unlink()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OnnxError, match=r"out\.onnx: it cannot be written"):
        save_onnx(loaded, tmp_path / "out.onnx")
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(OnnxError, match="no such folder"):
        save_onnx(model, tmp_path / "absent" / "out.onnx")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(model: onnx.ModelProto, tmp_path: Path, share: float) -> None:
    data = model.SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(OnnxError) as error:
        explain_onnx(load_onnx(tmp_path / "cut.onnx"))
    assert "cut short" in one_line(error)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model at all")
    with pytest.raises(OnnxError, match="no ONNX model"):
        load_onnx(tmp_path / "text.onnx")
    with pytest.raises(OnnxError, match="no such file"):
        load_onnx(tmp_path / "absent.onnx")


@pytest.mark.parametrize("location", ["../net.bin", "/etc/passwd", "", "sub/../../net.bin", "link.bin"])
def test_external_data_outside_the_folder_is_not_followed(
    model: onnx.ModelProto, tmp_path: Path, location: str
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = save_external(model, inner)
    (tmp_path / "net.bin").write_bytes((inner / "net.bin").read_bytes())
    (inner / "link.bin").symlink_to(tmp_path / "net.bin")
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxError) as error:
        load_onnx(path)
    assert "outside of the model's folder" in one_line(error)
    assert "w3" in str(error.value)


def test_missing_or_short_external_data_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = save_external(model, tmp_path)
    data = (tmp_path / "net.bin").read_bytes()
    (tmp_path / "net.bin").write_bytes(data[:100])
    with pytest.raises(OnnxError, match="which has 100"):
        load_onnx(path)
    (tmp_path / "net.bin").unlink()
    with pytest.raises(OnnxError, match="is missing"):
        load_onnx(path)


def test_a_model_in_memory_whose_data_is_elsewhere_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    proto = onnx.load(save_external(model, tmp_path), load_external_data=False)
    with pytest.raises(OnnxError, match="load_onnx"):
        reparameterize_onnx(proto)


def bad(change: str) -> onnx.ModelProto:
    proto = written(BRANCHES.replace("double", "float"), BRANCH_WEIGHTS)
    nodes = proto.graph.node
    if change == "domain":
        nodes[0].domain, nodes[0].name = "com.someone", "stem"
        proto.opset_import.append(onnx.helper.make_opsetid("com.someone", 1))
    elif change == "op":
        nodes[0].op_type = "Convolve"
    elif change == "old":
        proto.opset_import[0].version = 12
    elif change == "new":
        proto.opset_import[0].version = 999
    elif change == "no opset":
        del proto.opset_import[:]
    elif change == "cycle":
        nodes[0].input[0] = "s"
    elif change == "unknown value":
        nodes[0].input[0] = "nobody"
    elif change == "unknown output":
        proto.graph.output[0].name = "nobody"
    elif change == "quantized":
        nodes[-1].op_type = "Identity"
        nodes.append(onnx.helper.make_node("QuantizeLinear", ["s", "scale"], ["q"], "quant"))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.1, np.float32), "scale"))
    elif change == "sparse":
        tensor = proto.graph.sparse_initializer.add()
        tensor.values.name = "thin"
    elif change == "no graph":
        proto.ClearField("graph")
    else:
        add_bad_node(proto.graph, change)
    return proto


def add_bad_node(graph: onnx.GraphProto, change: str) -> None:
    nodes = graph.node
    if change == "sparse constant":
        values = onnx.numpy_helper.from_array(np.ones(2, np.float32), "values")
        indices = onnx.numpy_helper.from_array(np.array([0, 3]), "indices")
        thin = onnx.helper.make_sparse_tensor(values, indices, [4])
        nodes.append(onnx.helper.make_node("Constant", [], ["thin"], sparse_value=thin))
    elif change == "twice":
        graph.initializer.append(graph.initializer[0])
    elif change == "made twice":
        nodes.append(onnx.helper.make_node("Neg", ["s"], ["s"]))
    elif change == "split":
        nodes.append(onnx.helper.make_node("Split", ["s"], ["q1", "q2", "q3"], "cut", axis=1, num_outputs=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("domain", r"stem: com.someone.Conv is of a domain that nobody knows"),
        ("op", r"ONNX has no op Convolve"),
        ("old", r"opset 12 is too old, 13 is the oldest"),
        ("new", r"opset 999 is newer"),
        ("no opset", r"does not say which opset"),
        ("cycle", r"the graph has a cycle"),
        ("unknown value", r"its input 'nobody' is made by nothing"),
        ("unknown output", r"the output 'nobody' is made by nothing"),
        (
            "quantized",
            r"quant: the model is quantized \(QuantizeLinear\), and folding must come before quantization",
        ),
        ("sparse", r"the sparse initializer 'thin' is not read"),
        ("sparse constant", r"no valid ONNX model: .*[Ss]parse"),
        ("twice", r"two initializers are called 'w3'"),
        ("made twice", r"no valid ONNX model: .*'s'"),
        ("split", r"cut: a split into 2 has 3 outputs"),
        ("no graph", r"no graph"),
    ],
)
@pytest.mark.parametrize("form", ["proto", "file"])
def test_an_invalid_model_is_one_clear_line(change: str, message: str, form: str, tmp_path: Path) -> None:
    proto = bad(change)
    (tmp_path / "bad.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxError, match=message) as error:
        reparameterize_onnx(proto if form == "proto" else load_onnx(tmp_path / "bad.onnx"))
    one_line(error)


def test_nodes_out_of_order_are_put_in_order(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    after, _ = reparameterize_onnx(model)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu"]


def test_ops_of_a_runtimes_own_domain_are_left_alone(model: onnx.ModelProto) -> None:
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "QuickGelu", "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    after, _ = reparameterize_onnx(model)
    assert [node.op_type for node in after.graph.node] == ["Conv", "QuickGelu"]
    assert verify_onnx(model, after)


@pytest.mark.parametrize("opset", [13, 14, 15, 17, 19, 21, 23])
def test_every_opset_is_read(opset: int) -> None:
    model = written(BRANCHES.replace("double", "float"), BRANCH_WEIGHTS, opset=opset)
    after, _ = reparameterize_onnx(model)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu"]
    assert after.opset_import[0].version == opset


def test_the_model_may_be_any_that_onnx_ir_makes(model: onnx.ModelProto) -> None:
    given = ir.from_proto(model)
    before = ir.to_proto(given).SerializeToString()
    after, report = reparameterize_onnx(given)
    assert ir.to_proto(given).SerializeToString() == before
    assert verify_onnx(given, after, report=report)
