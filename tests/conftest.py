"""What every test gets: checked annotations, fixed seeds, one thread, and the shared data where it exists."""

import os
import sys
from pathlib import Path

import jaxtyping
import pytest

import tests.type_check

# Every annotation of the package is checked at each call. The hook only sees what is imported after it, and
# each worker of pytest-xdist is a process that reads this file for itself.
if "unbranch" in sys.modules:
    raise pytest.UsageError(
        "unbranch was imported before tests/conftest.py: its annotations would go unchecked"
    )
jaxtyping.install_import_hook("unbranch", f"{tests.type_check.__name__}.checked")

# ultralytics would otherwise install packages, ask the network and write into the home directory.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_CONFIG_DIR", str(Path(__file__).parents[1] / ".cache" / "ultralytics"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

ROOT = Path(__file__).parents[1]

torch.set_num_threads(1)
# The same examples on every machine, and no deadline: a shared machine is slow now and then.
settings.register_profile("unbranch", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("unbranch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator of the test's own, so that its draws depend on nothing else that is drawn."""
    return torch.Generator().manual_seed(20_221_104)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and weights: UNBRANCH_SHARED_DATA, else ../shared/data beside the repo."""
    named = os.environ.get("UNBRANCH_SHARED_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set UNBRANCH_SHARED_DATA to the folder that holds it")
    return folder
