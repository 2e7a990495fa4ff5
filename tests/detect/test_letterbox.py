"""The letterbox: geometry, borders, and pixels as OpenCV's bilinear resize makes them."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.detect.photographs import picture
from unbranch.detect.letterbox import GREY, fill, network_input, place

side = st.integers(1, 1500)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns", "top", "left"),
    [
        (1080, 810, 640, 480, 0, 0),
        (720, 1280, 384, 640, 12, 0),
        (480, 640, 480, 640, 0, 0),
        (333, 500, 448, 640, 11, 0),  # 426 rows of picture, 22 to spare
        (427, 640, 448, 640, 10, 0),  # 21 to spare: the odd one goes below
        (100, 100, 640, 640, 0, 0),
        (1, 5000, 32, 640, 15, 0),
    ],
)
def test_known_places(height: int, width: int, rows: int, columns: int, top: int, left: int) -> None:
    box = place(height, width)
    assert (box.rows, box.columns, box.top, box.left) == (rows, columns, top, left)


@given(side, side, st.sampled_from([64, 320, 640, (384, 640)]), st.booleans(), st.booleans())
def test_the_picture_lies_inside_and_boxes_go_there_and_back(
    height: int, width: int, size: int | tuple[int, int], rectangular: bool, enlarge: bool
) -> None:
    box = place(height, width, size, 32, rectangular, enlarge)
    rows, columns = (size, size) if isinstance(size, int) else size
    assert 0 <= box.top <= box.rows - box.inner_rows
    assert 0 <= box.left <= box.columns - box.inner_columns
    assert box.rows <= rows
    assert box.columns <= columns
    if rectangular:
        assert box.rows - box.inner_rows < 32
        assert box.columns - box.inner_columns < 32
    else:
        assert (box.rows, box.columns) == (rows, columns)
    if not enlarge:
        assert box.inner_rows <= height
        assert box.inner_columns <= width
    whole = torch.tensor([[0.0, 0.0, width, height]])
    there = box.to_network(whole)
    corners = [[box.left, box.top, box.left + box.inner_columns, box.top + box.inner_rows]]
    assert torch.allclose(there, torch.tensor(corners, dtype=torch.float32), atol=1e-3)
    assert torch.allclose(box.to_picture(there), whole, atol=0.05)


def test_boxes_beyond_the_picture_are_cut() -> None:
    box = place(100, 200, 64, 32)
    cut = box.to_picture(torch.tensor([[-50.0, -50.0, 500.0, 500.0]]))
    assert cut.tolist() == [[0, 0, 200, 100]]


@pytest.mark.parametrize(("height", "width"), [(30, 60), (61, 33), (200, 100), (64, 64)])
def test_pixels_are_opencvs(height: int, width: int) -> None:
    """Half-pixel centres, no antialiasing, grey 114 around; a picture of the right size is not resampled."""
    pixels = picture(height, width)
    box = place(height, width, 64, 32)
    filled = fill(pixels, box)
    inner = filled[box.top : box.top + box.inner_rows, box.left : box.left + box.inner_columns]
    if max(height, width) == 64:
        assert np.array_equal(inner, pixels)
    else:
        resized = cv2.resize(pixels, (box.inner_columns, box.inner_rows), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(inner, resized)
    outside = np.ones(filled.shape[:2], bool)
    outside[box.top : box.top + box.inner_rows, box.left : box.left + box.inner_columns] = False
    assert np.all(filled[outside] == GREY)


def test_shrinking_does_not_average() -> None:
    """One white line of eight survives as it falls on the samples, or not at all: no antialiasing."""
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[::8] = 255
    assert set(np.unique(fill(pixels, place(256, 256, 32, 32)))) <= {0, 128, 255}


def test_values_are_exactly_v_over_255_red_first() -> None:
    pixels = picture(64, 96)
    planes = network_input(pixels)
    assert planes.dtype == np.float32
    expected = pixels[..., ::-1].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    assert np.array_equal(planes, expected)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of the stride"):
        place(10, 10, 600, 32)
    with pytest.raises(ValueError, match="positive"):
        place(0, 10)
