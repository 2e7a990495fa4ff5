"""The fold and the depthwise kernels, compiled for this machine on first use and kept in the user's cache; or one line on why not."""

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

import torch

log = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("kernels")
SOURCE = SOURCES / "merged.cpp"
OFF = "UNBRANCH_COMPILE"
"""Set to 0, nothing is compiled."""
FOLDER = "UNBRANCH_CACHE"
"""Where compiled kernels are kept; else XDG_CACHE_HOME/unbranch, ~/.cache/unbranch."""
TIMEOUT = 600


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


def target() -> Path:
    """The library's file: another one for each source, torch, compiler and processor."""
    named = os.environ.get(FOLDER)
    base = (
        Path(named)
        if named
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unbranch"
    )
    sources = [path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.[hc]*"))]
    facts = [*sources, torch.__version__, *flags(), _compiler() or "", _processor()]
    return base / f"merged-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.so"


@cache
def unavailable() -> str | None:
    """None where the kernels are loaded, compiled first if need be; else why not. Asked once a process."""
    if os.environ.get(OFF) == "0":
        return f"{OFF}=0"
    if sys.platform != "linux":
        return f"the kernels are compiled on Linux only, not on {sys.platform}"
    try:
        library = target()
        if not library.is_file():
            _compile(library)
        torch.ops.load_library(library)
    except (OSError, subprocess.SubprocessError) as error:
        reason = _first_line(error)
        log.warning("depthwise branches train one by one: %s", reason)
        return reason
    return None


def _compile(library: Path) -> None:
    """Into a folder of its own, then moved: two processes at once do no harm. Raises OSError and SubprocessError."""
    compiler = _compiler()
    if compiler is None:
        raise FileNotFoundError("no C++ compiler found: install g++ or clang++, or set CXX")
    library.parent.mkdir(parents=True, exist_ok=True)
    log.info("compiling the kernels of merged training once, into %s", library)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        # `flags` ends in the libraries, which some linkers want after what needs them.
        command = [compiler, str(SOURCE), "-o", str(made), *flags()]
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
