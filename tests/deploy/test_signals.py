"""A process that has used OpenVINO outlives the signals that Python handles."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("openvino")

SCRIPT = """
import gc, signal, subprocess, sys
from pathlib import Path
import torch
from unbranch.runtimes.sessions import openvino

first, second = (openvino(Path(sys.argv[1]), [torch.ones(1, 3, 8, 8)], 1) for _ in range(2))
first(), second()
del first
gc.collect()
del second
gc.collect()
heard = []
signal.signal(signal.SIGCHLD, lambda *_: heard.append(1))
for _ in range(20):
    subprocess.run([sys.executable, "-c", ""], check=True)
print(len(heard))
"""


def test_a_childs_end_is_heard_after_openvino_has_gone(tmp_path: Path) -> None:
    file = tmp_path / "conv.onnx"
    program = torch.onnx.export(
        torch.nn.Conv2d(3, 4, 3).eval(), (torch.ones(1, 3, 8, 8),), dynamo=True, verbose=False
    )
    assert program is not None
    program.save(file)
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode != -signal.SIGSEGV
    assert ran.stdout == "20\n", ran.stderr
