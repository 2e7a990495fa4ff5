"""What merged training runs, compiled for this machine and a type on first use and kept in the user's cache; or one line on why not."""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("kernels")
SOURCE = SOURCES / "merged.cpp"
OFF = "UNBRANCH_COMPILE"
"""Set to 0, nothing is compiled."""
FOLDER = "UNBRANCH_CACHE"
"""Where compiled kernels are kept; else XDG_CACHE_HOME/unbranch, ~/.cache/unbranch."""
TIMEOUT = 600
TYPES = {torch.float32: "float", torch.float64: "double"}
"""A library for each: few need both, and each takes its time to compile."""


def flags() -> list[str]:
    """For this machine's own instructions, with torch's own threads: its OpenMP is the one that is loaded."""
    root = Path(torch.__file__).parent
    return [
        "-std=c++20",
        "-O3",
        "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native",
        "-fopenmp",
        "-shared",
        "-fPIC",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-I{root / 'include'}",
        f"-I{root / 'include' / 'torch' / 'csrc' / 'api' / 'include'}",
        f"-L{root / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
    ]


def target(dtype: torch.dtype) -> Path:
    """The library's file: another one for each type, source, torch, compiler and processor."""
    named = os.environ.get(FOLDER)
    base = (
        Path(named)
        if named
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unbranch"
    )
    sources = [path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.[hc]*"))]
    facts = [*sources, torch.__version__, *flags(), _compiler() or "", _processor()]
    return base / f"merged-{TYPES[dtype]}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.so"


def allowed() -> bool:
    """Whether anything compiled may be used."""
    return os.environ.get(OFF) != "0"


@cache
def unavailable(dtype: torch.dtype = torch.float32) -> str | None:
    """None where the kernels are loaded, compiled first if need be; else why not. Asked once a process."""
    if not allowed():
        return f"{OFF}=0"
    if sys.platform != "linux":
        return f"the kernels are compiled on Linux only, not on {sys.platform}"
    try:
        library = target(dtype)
        if not library.is_file():
            _compile(library, dtype)
        torch.ops.load_library(library)
    except (OSError, subprocess.SubprocessError) as error:
        reason = _first_line(error)
        log.warning("merged training goes on uncompiled, depthwise branches one by one: %s", reason)
        return reason
    return None


def kernels(dtype: torch.dtype) -> Any:
    """The operators for inputs of this type, where they are available: each says itself what it takes and returns."""
    return _OPERATORS[dtype]


_OPERATORS = {dtype: torch.ops.__getattr__(f"unbranch_{name}") for dtype, name in TYPES.items()}


def _compile(library: Path, dtype: torch.dtype) -> None:
    """Into a folder of its own, then moved: two processes at once do no harm. Raises OSError and SubprocessError."""
    compiler = _compiler()
    if compiler is None:
        raise FileNotFoundError("no C++ compiler found: install g++ or clang++, or set CXX")
    library.parent.mkdir(parents=True, exist_ok=True)
    # Whoever waits should know what for.
    log.warning("compiling the kernels of merged training, once, for half a minute or so, into %s", library)
    name = TYPES[dtype]
    given = [f"-DUNBRANCH_SCALAR={name}", f"-DUNBRANCH_NAME=unbranch_{name}"]
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        # `flags` ends in the libraries, which some linkers want after what needs them.
        command = [compiler, str(SOURCE), "-o", str(made), *given, *flags()]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
        made.replace(library)


def _compiler() -> str | None:
    asked = os.environ.get("CXX")
    return shutil.which(asked) if asked else shutil.which("g++") or shutil.which("clang++")


def _processor() -> str:
    """What the processor can do, so that a home that several machines share holds a library for each."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _first_line(error: OSError | subprocess.SubprocessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in error.stderr.splitlines() if "error" in line] or ["no message"]
        return f"{error.cmd[0]} failed: {lines[0]}"
    return str(error).splitlines()[0]
