"""Certificates compare the maths: nothing is rounded to a shorter format meanwhile, and the process's settings come back."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch
from unbranch.fold.precision import OPS, PARENTS, exact_products, full_precision, precision_of

BACKENDS: Any = torch.backends
CPU = torch.device("cpu")


def settings() -> list[str]:
    """What holds for each."""
    return [precision_of(setting) for setting in (*PARENTS, *OPS)]


def own() -> dict[tuple[str, str], str]:
    """What each one says itself: those that it inherits from are neutral meanwhile."""
    found = {}
    for setting in (*PARENTS, *OPS):
        found[setting] = precision_of(setting)
        if setting in PARENTS:
            allow(setting, "none")()
    for setting in PARENTS:
        allow(setting, found[setting])()
    return found


def older() -> tuple[bool, bool, str]:
    return (
        BACKENDS.cudnn.allow_tf32,
        BACKENDS.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision(),
    )


def allow(setting: tuple[str, str], value: str) -> Callable[[], None]:
    return lambda: torch._C._set_fp32_precision_setter(*setting, value)


def allow_products() -> None:
    BACKENDS.cuda.matmul.allow_tf32 = True


def forbid_convolutions() -> None:
    BACKENDS.cudnn.allow_tf32 = False


def medium_but_exact_on_the_cpu() -> None:
    torch.set_float32_matmul_precision("medium")
    allow(("mkldnn", "matmul"), "ieee")()


WAYS: dict[str, Callable[[], None]] = {
    "as torch starts": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "products": allow_products,
    "no convolutions": forbid_convolutions,
    "everything": allow(("generic", "all"), "tf32"),
    "a backend": allow(("cuda", "all"), "tf32"),
    "another": allow(("mkldnn", "all"), "bf16"),
    "one op": allow(("mkldnn", "rnn"), "bf16"),
    "both generations": medium_but_exact_on_the_cpu,
}


def as_torch_starts() -> None:
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for setting in (*PARENTS, *OPS):
        allow(setting, "tf32" if setting in (("cuda", "conv"), ("cuda", "rnn")) else "none")()


@pytest.fixture(params=WAYS)
def allowed(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """What holds, where so much is allowed; whatever other tests left."""
    as_torch_starts()
    WAYS[request.param]()
    yield settings()
    as_torch_starts()


def test_a_certificate_is_in_full_precision(allowed: list[str]) -> None:
    noted: list[Any] = []

    class Noting(nn.Conv2d):
        """Asks, as some layers do, what is allowed."""

        def forward(self, input: Tensor) -> Tensor:
            recurrent = BACKENDS.cudnn.rnn.fp32_precision, BACKENDS.mkldnn.rnn.fp32_precision
            noted.append((older(), {precision_of(op) for op in OPS} | {*recurrent}))
            return super().forward(input)

    model = Noting(3, 4, 3).eval()
    assert unbranch.verify(model, model, torch.ones(1, 3, 9, 9))
    assert noted
    assert all(seen == ((False, False, "highest"), {"ieee"}) for seen in noted)
    assert settings() == allowed


def test_what_was_inherited_is_inherited_again(allowed: list[str]) -> None:
    before = own()
    with full_precision():
        pass
    assert own() == before


def test_the_older_settings_come_back(allowed: list[str]) -> None:
    try:
        before = older()
    except RuntimeError:
        pytest.skip("torch itself refuses to say what holds")
    with full_precision():
        assert older() == (False, False, "highest")
    assert older() == before


def test_the_settings_come_back_after_an_error(allowed: list[str]) -> None:
    with pytest.raises(KeyError), full_precision():
        raise KeyError
    assert settings() == allowed


def test_who_leaves_last_puts_them_back(allowed: list[str]) -> None:
    """As two threads do, the first to come the first to leave."""
    one, other = full_precision(), full_precision()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert {precision_of(op) for op in OPS} == {"ieee"}
    with exact_products(CPU):
        other.__exit__(None, None, None)
        assert precision_of(("mkldnn", "matmul")) == "ieee"
    assert settings() == allowed


def test_products_are_exact_on_the_cpu(allowed: list[str]) -> None:
    with exact_products(CPU):
        assert precision_of(("mkldnn", "matmul")) in ("none", "ieee")
    assert settings() == allowed
