"""Read a PyTorch archive (`torch.save`, since 1.6): tensors, plain values and inert records, and no code.

The archive is a zip file with a pickle `data.pkl` and one stored file for each storage. Every size is checked
against the file's own before a byte is allocated, so a small file cannot ask for much memory.
"""

import math
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbranch.detect.errors import InputError
from unbranch.detect.pickles import PLAIN_CONSTRUCTORS, Constructor, Global, read_pickle

_DTYPES: Mapping[Global, torch.dtype] = {
    Global("torch", f"{name}Storage"): dtype
    for name, dtype in {
        "Float": torch.float32,
        "Double": torch.float64,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}


def read_archive(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote to `path`: dicts, lists, numbers, text, CPU tensors, and `Record`s for all
    other objects.

    Nothing in the file is imported or called (see `unbranch.detect.pickles`).
    Raises `InputError` for a missing file, a file of another kind, and one that is cut off or made up.

    >>> import tempfile, os
    >>> file = os.path.join(tempfile.mkdtemp(), "a.pt")
    >>> torch.save({"weight": torch.ones(2, 3)}, file)
    >>> read_archive(file)["weight"].shape
    torch.Size([2, 3])
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        with zipfile.ZipFile(file) as archive:
            return _Archive(archive, file).read()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise InputError(
            f"{file}: not a PyTorch archive ({error}); files from before PyTorch 1.6 must be saved again "
            "with a newer one"
        ) from error


class _Archive:
    def __init__(self, archive: zipfile.ZipFile, file: Path) -> None:
        self.archive = archive
        self.file = file
        self.storages: dict[str, Tensor] = {}
        members = archive.infolist()
        self.members = {member.filename: member for member in members}
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise InputError(f"{file}: holds compressed members, which PyTorch never writes")
        if sum(member.file_size for member in members) > file.stat().st_size:
            raise InputError(f"{file}: its members claim more bytes than the file has")
        pickles = [name for name in self.members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise InputError(f"{file}: {len(pickles)} members named data.pkl; a PyTorch archive has one")
        self.pickle = pickles[0]
        self.prefix = self.pickle.removesuffix("data.pkl")

    def read(self) -> Any:
        if f"{self.prefix}byteorder" in self.members:
            order = self.archive.read(f"{self.prefix}byteorder")
            if order != b"little":
                raise InputError(f"{self.file}: byte order {order!r}; only little-endian files are read")
        constructors: dict[Global, Constructor] = {
            **PLAIN_CONSTRUCTORS,
            Global("torch._utils", "_rebuild_tensor"): _strided,
            Global("torch._utils", "_rebuild_tensor_v2"): _strided,
            Global("torch._utils", "_rebuild_parameter"): _parameter,
            Global("torch", "Size"): _size,
        }
        return read_pickle(self.archive.read(self.pickle), str(self.file), constructors, self.storage)

    def storage(self, key: Any) -> Tensor:
        """The flat tensor behind a persistent id `("storage", type, name, device, elements)`."""
        if not isinstance(key, tuple) or len(key) != 5 or key[0] != "storage":
            raise ValueError("a persistent id that is no storage")
        kind, name, elements = key[1], key[2], key[4]
        dtype = _DTYPES.get(kind) if isinstance(kind, Global) else None
        if dtype is None or not isinstance(name, str) or type(elements) is not int:
            raise ValueError(f"a storage of unknown kind {kind}")
        if name not in self.storages:
            self.storages[name] = self._load(f"{self.prefix}data/{name}", dtype, elements)
        stored = self.storages[name]
        if stored.dtype != dtype or stored.numel() != elements:
            raise ValueError(f"storage {name!r} is named twice, with different types or lengths")
        return stored

    def _load(self, member: str, dtype: torch.dtype, elements: int) -> Tensor:
        if member not in self.members:
            raise ValueError(f"storage {member!r} is missing")
        size = self.members[member].file_size
        if size != elements * dtype.itemsize:
            raise ValueError(f"storage {member!r} has {size} bytes where {elements} of {dtype} are claimed")
        if not elements:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(self.archive.read(member)), dtype=dtype)


def _strided(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor of its own with the given view's values; the view must lie inside its storage."""
    shape, steps = _size(size), _size(stride)
    if not isinstance(storage, Tensor) or type(offset) is not int or len(shape) != len(steps):
        raise ValueError("a tensor without a storage, an offset, and as many strides as sizes")
    elements = math.prod(shape)
    last = offset + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
    if offset < 0 or (elements and last >= storage.numel()) or elements > storage.numel():
        raise ValueError(
            f"a tensor of shape {tuple(shape)} outside its storage of {storage.numel()} elements"
        )
    return storage.as_strided(shape, steps, offset).clone(memory_format=torch.contiguous_format)


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter that is no tensor")
    return data


def _size(values: Any) -> torch.Size:
    if not isinstance(values, list | tuple) or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError("a shape that is not a list of counts")
    return torch.Size(values)
