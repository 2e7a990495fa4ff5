"""The trained YOLOv5n and what its original code found on photographs."""

from pathlib import Path

import pytest

from tests.detect.photographs import Reference, references
from unbranch.detect import import_original
from unbranch.models.yolov5 import YOLOv5


@pytest.fixture(scope="module")
def network(shared_data: Path) -> YOLOv5:
    return import_original(shared_data / "yolov5n" / "yolov5n.pt")


@pytest.fixture(scope="module")
def pictures(shared_data: Path) -> list[Reference]:
    return references(shared_data)
