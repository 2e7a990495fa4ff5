"""Reading a pickle runs nothing: each hostile file does harm to Python's own reader, and none to ours."""

import io
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._utils import _rebuild_tensor_v2

from unbranch.detect.archive import read_archive
from unbranch.detect.errors import InputError
from unbranch.detect.pickles import Global, Record, read_pickle

RAN: list[str] = []


def _harm(note: str) -> str:
    RAN.append(note)
    return note


class Reduced:
    """Calls on loading."""

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        return _harm, ("reduce",)


class Rebuilt:
    """Has a __setstate__ that acts."""

    def __init__(self) -> None:
        self.value = 1

    def __setstate__(self, state: dict[str, int]) -> None:
        RAN.append("setstate")


class Hashed:
    """Acts when it becomes a key."""

    def __hash__(self) -> int:
        RAN.append("hash")
        return 1


class Listed(list[int]):
    """A list whose append acts."""

    def append(self, value: int) -> None:
        RAN.append("append")

    def extend(self, values: object) -> None:
        RAN.append("extend")


def _reduced() -> bytes:
    return pickle.dumps(Reduced(), protocol=2)


def _rebuilt() -> bytes:
    return pickle.dumps(Rebuilt(), protocol=2)


def _hashed() -> bytes:
    return pickle.dumps({Hashed(): 1}, protocol=2)


def _listed() -> bytes:
    return pickle.dumps(Listed([1, 2]), protocol=2)


def _evaluated() -> bytes:
    code = f"__import__({__name__!r}, fromlist=['RAN']).RAN.append('eval')".encode()
    return b"\x80\x02cbuiltins\neval\nX" + struct.pack("<I", len(code)) + code + b"\x85R."


def _stacked() -> bytes:
    """The same by STACK_GLOBAL, which hides the name from a search for GLOBAL."""
    module, name = __name__.encode(), b"_harm"
    names = b"".join(b"\x8c" + bytes([len(text)]) + text for text in (module, name))
    return b"\x80\x04" + names + b"\x93\x8c\x03hid\x85R."


@pytest.mark.parametrize("hostile", [_reduced, _rebuilt, _hashed, _listed, _evaluated, _stacked])
def test_what_acts_in_pythons_reader_is_inert_in_ours(hostile: Callable[[], bytes]) -> None:
    content = hostile()
    RAN.clear()
    pickle.loads(content)
    assert RAN, "the hostile file is no test: Python's own reader ran nothing either"
    RAN.clear()
    read_pickle(content, "hostile")
    assert RAN == []


def _instance() -> bytes:
    return b"(S'echo harm > /dev/null'\nios\nsystem\n."


def _called_object() -> bytes:
    return b"(cos\nsystem\nS'true'\no."


def _extension() -> bytes:
    return b"\x80\x02\x82\x01."


def _text_identity() -> bytes:
    return b"Pstorage\n."


@pytest.mark.parametrize("refused", [_instance, _called_object, _extension, _text_identity])
def test_opcodes_that_pytorch_does_not_write_are_refused(refused: Callable[[], bytes]) -> None:
    with pytest.raises(InputError, match=r"not one that PyTorch writes|not a pickle"):
        read_pickle(refused(), "old")


SCRIPT = """
import sys
from unbranch.detect.errors import InputError
from unbranch.detect.archive import read_archive

for path in sys.argv[1:3]:
    read_archive(path)  # sound files first: the codecs that zipfile itself wants are imported
seen = []
sys.addaudithook(lambda event, details: seen.append(event))
for path in sys.argv[3:]:
    try:
        read_archive(path)
    except InputError:
        pass
print(sorted(set(seen) - {"open", "object.__getattr__", "os.putenv"}))
"""


def _archive(path: Path, content: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, data in members.items():
            archive.writestr(f"archive/data/{name}", data)
    return path


def test_the_interpreter_sees_no_import_no_call_and_no_process(tmp_path: Path) -> None:
    """Python's audit events, which nothing in the process can pass by: reading hostile files raises none of
    them.
    """
    sound = (tmp_path / "sound.pt", _archive(tmp_path / "plain.pt", pickle.dumps({}, 2)))
    torch.save({"a": torch.ones(2)}, sound[0])
    canary = tmp_path / "canary"
    command = f"touch {canary}".encode()
    system = b"\x80\x02cposix\nsystem\nX" + struct.pack("<I", len(command)) + command + b"\x85R."
    hostile = [_reduced(), _rebuilt(), _evaluated(), _stacked(), system]
    paths = [_archive(tmp_path / f"{i}.pt", content) for i, content in enumerate(hostile)]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, (*sound, *paths))],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert run.stdout.strip() == "[]"
    assert not canary.exists()
    pickle.loads(system)
    assert canary.exists(), "the hostile file is no test: Python's own reader ran nothing either"


def test_plain_values_are_what_pickle_reads() -> None:
    value = {
        "numbers": [1, -(2**40), 2**80, 0.5, True, None],
        "text": ("a", "ü" * 300),
        "nested": OrderedDict([("a", {"b": (1, (2, 3))}), ("c", [[]])]),
        "set": {1, 2, 3},
        ("pair", 1): [],
    }
    for protocol in (2, 3, 4):
        assert read_pickle(pickle.dumps(value, protocol), "plain") == value
    for protocol in (3, 4):
        assert read_pickle(pickle.dumps(b"bytes", protocol), "plain") == b"bytes"


def test_shared_and_circular_values_keep_their_identity() -> None:
    shared: list[object] = [1]
    shared.append(shared)
    read = read_pickle(pickle.dumps({"a": shared, "b": shared}, 2), "plain")
    assert read["a"] is read["b"]
    assert read["a"][1] is read["a"]


def test_objects_become_records_of_their_state() -> None:
    record = read_pickle(_rebuilt(), "record")
    assert isinstance(record, Record)
    assert record.kind == Global(__name__, "Rebuilt")
    assert record.attributes == {"value": 1}


def test_state_for_a_name_is_refused() -> None:
    """BUILD on a class or function would set its attributes: here it is an error, whatever the state."""
    with pytest.raises(InputError, match="state for a Global"):
        read_pickle(
            b"\x80\x02ccollections\nOrderedDict\n}X\x08\x00\x00\x00__doc__xX\x01\x00\x00\x00ysb.", "build"
        )


def test_a_tower_of_tuples_as_a_key_is_refused() -> None:
    """Hashing it would recurse in C until the interpreter crashes."""
    tower = b")" + b"\x85" * 200_000
    with pytest.raises(InputError, match="as a key"):
        read_pickle(b"\x80\x02}" + tower + b"K\x01s.", "tower")


@pytest.mark.parametrize("end", range(1, 60, 7))
def test_a_cut_off_pickle_is_one_line(end: int) -> None:
    content = pickle.dumps({"a": [1, 2, OrderedDict(b=Rebuilt())]}, 2)
    with pytest.raises(InputError) as caught:
        read_pickle(content[:end], "cut.pt")
    assert str(caught.value).startswith("cut.pt: ")
    assert "\n" not in str(caught.value)


def test_every_byte_changed_gives_a_value_or_an_input_error() -> None:
    """Damage may change what is read, never how it fails."""
    content = bytearray(pickle.dumps(OrderedDict(a=[1, (2, "x")], b={3: Rebuilt()}), 2))
    failures = 0
    for position in range(len(content)):
        for value in (0, ord("."), ord("R"), ord("b"), ord("("), 0xFF):
            damaged = bytes(content[:position]) + bytes([value]) + bytes(content[position + 1 :])
            try:
                read_pickle(damaged, "damaged")
            except InputError:
                failures += 1
    assert failures > len(content)


def _tensor_pickle(offset: int, size: tuple[int, ...], stride: tuple[int, ...], elements: int) -> bytes:
    """What torch.save writes for one float32 tensor, with numbers of our own."""

    class Storage:
        pass

    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    fake = Storage()
    pickler.persistent_id = lambda thing: (  # pyright: ignore[reportAttributeAccessIssue]
        ("storage", torch.FloatStorage, "0", "cpu", elements) if thing is fake else None
    )

    class Rebuild:
        def __reduce__(self) -> tuple[object, ...]:
            arguments = (fake, offset, size, stride, False, OrderedDict())
            return _rebuild_tensor_v2, arguments

    pickler.dump(Rebuild())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("offset", "size", "stride", "elements"),
    [
        (0, (5,), (1,), 4),  # one too many
        (1, (4,), (1,), 4),  # shifted out
        (-1, (2,), (1,), 4),  # before the beginning
        (0, (10**12,), (0,), 4),  # a small file that asks for terabytes
        (0, (2, 2), (1,), 4),  # strides for another shape
        (0, (4,), (1,), 5),  # a storage that claims more than its member has
        (0, (-4,), (1,), 4),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...], elements: int
) -> None:
    path = _archive(tmp_path / "a.pt", _tensor_pickle(offset, size, stride, elements), **{"0": bytes(16)})
    with pytest.raises(InputError):
        read_archive(path)


def test_an_honest_tensor_of_the_same_making_is_read(tmp_path: Path) -> None:
    data = struct.pack("<4f", 1, 2, 3, 4)
    path = _archive(tmp_path / "a.pt", _tensor_pickle(1, (3,), (1,), 4), **{"0": data})
    assert torch.equal(read_archive(path), torch.tensor([2.0, 3.0, 4.0]))


def test_tensors_of_all_kinds_come_back(tmp_path: Path) -> None:
    kinds = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32]
    kinds += [torch.int16, torch.int8, torch.uint8, torch.bool]
    saved = {str(kind): (torch.arange(12).reshape(3, 4) % 2).to(kind).t()[1:] for kind in kinds}
    saved["parameter"] = torch.nn.Parameter(torch.randn(3))
    saved["empty"] = torch.empty(0, 3)
    torch.save(saved, tmp_path / "a.pt")
    read = read_archive(tmp_path / "a.pt")
    assert read.keys() == saved.keys()
    assert all(torch.equal(read[key], saved[key]) and read[key].dtype == saved[key].dtype for key in saved)


def test_shared_storage_does_not_make_shared_tensors(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    torch.save([base[:2], base[1:3]], tmp_path / "a.pt")
    first, second = read_archive(tmp_path / "a.pt")
    first.zero_()
    assert torch.equal(second, torch.tensor([1.0, 2.0]))


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    """A zip bomb has to compress; PyTorch stores."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(InputError, match="compressed"):
        read_archive(tmp_path / "bomb.pt")


def test_what_is_no_archive_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match=r"text\.pt: not a PyTorch archive"):
        read_archive(tmp_path / "text.pt")
    with pytest.raises(InputError, match="no such file"):
        read_archive(tmp_path / "absent.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("archive/code.py", "print('harm')")
    with pytest.raises(InputError, match=r"0 members named data\.pkl"):
        read_archive(tmp_path / "other.pt")


def test_only_known_opcodes_are_taken() -> None:
    """The table is closed: whatever protocol 5 or the text protocols add is refused by name."""
    known = {opcode.name for opcode in pickletools.opcodes}
    for name in ("PERSID", "INST", "OBJ", "EXT1", "NEXT_BUFFER", "BYTEARRAY8", "GET", "PUT", "STRING"):
        assert name in known
        with pytest.raises(InputError, match=f"{name} is not one"):
            read_pickle(_with_opcode(name), "closed")


def _with_opcode(name: str) -> bytes:
    opcode = next(op for op in pickletools.opcodes if op.name == name)
    argument = {"PERSID": b"x\n", "INST": b"a\nb\n", "EXT1": b"\x01", "GET": b"0\n", "PUT": b"0\n"}.get(
        name, b""
    )
    argument = {"STRING": b"'x'\n", "BYTEARRAY8": bytes(8)}.get(name, argument)
    return opcode.code.encode("latin1") + argument + b"."
