"""Certificates compare the maths: nothing is rounded to a shorter format meanwhile, and the process's settings come back."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch
from unbranch.fold.precision import PER_BACKEND, full_precision

BACKENDS: Any = torch.backends


def settings() -> dict[str, Any]:
    found = {
        "convolutions": BACKENDS.cudnn.allow_tf32,
        "on GPUs": BACKENDS.cuda.matmul.allow_tf32,
        "products": torch.get_float32_matmul_precision(),
    }
    if PER_BACKEND:
        parts = (BACKENDS.cudnn.conv, BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv)
        found["parts"] = [part.fp32_precision for part in parts]
    return found


def allow_products() -> None:
    BACKENDS.cuda.matmul.allow_tf32 = True


def forbid_convolutions() -> None:
    BACKENDS.cudnn.allow_tf32 = False


WAYS: dict[str, Callable[[], None]] = {
    "as torch starts": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "products": allow_products,
    "no convolutions": forbid_convolutions,
}


@pytest.fixture(params=WAYS)
def allowed(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    convolutions = BACKENDS.cudnn.allow_tf32
    WAYS[request.param]()
    yield settings()
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = convolutions


def test_a_certificate_is_in_full_precision(allowed: dict[str, Any]) -> None:
    noted: list[dict[str, Any]] = []

    class Noting(nn.Conv2d):
        """Asks, as some layers do, what is allowed."""

        def forward(self, input: Tensor) -> Tensor:
            noted.append(settings())
            return super().forward(input)

    model = Noting(3, 4, 3).eval()
    assert unbranch.verify(model, model, torch.ones(1, 3, 9, 9))
    assert noted
    for seen in noted:
        assert (seen["convolutions"], seen["on GPUs"], seen["products"]) == (False, False, "highest")
        assert {*seen.get("parts", ())} <= {"ieee"}
    assert settings() == allowed


def test_the_settings_come_back_after_an_error(allowed: dict[str, Any]) -> None:
    with pytest.raises(KeyError), full_precision():
        raise KeyError
    assert settings() == allowed


@pytest.mark.skipif(not PER_BACKEND, reason="torch has the older settings alone")
def test_settings_of_one_op_come_back() -> None:
    """The older ones cannot be asked for then, inside they can."""
    before = BACKENDS.cuda.matmul.fp32_precision
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    try:
        with full_precision():
            assert settings()["products"] == "highest"
        assert BACKENDS.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
        BACKENDS.cuda.matmul.fp32_precision = before
