"""The run-time check is really on: a wrong argument to the package is noticed."""

import sys
import textwrap
from pathlib import Path

import jaxtyping
import pytest
import torch

import unbranch

MODULE = """
    from typing import Self

    from jaxtyping import Float
    from torch import Tensor


    class Same:
        def itself(self) -> Self:
            return self


    def channels(x: Float[Tensor, "n c h w"]) -> int:
        return x.shape[1]
"""


def test_the_hook_is_installed_over_the_package() -> None:
    loader = unbranch.__spec__.loader
    assert type(loader).__module__ == "jaxtyping._import_hook"


def test_shapes_are_checked_and_self_is_let_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "annotated_for_a_test.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    with jaxtyping.install_import_hook("annotated_for_a_test", "tests.type_check.checked"):
        module = __import__("annotated_for_a_test")
    monkeypatch.delitem(sys.modules, "annotated_for_a_test")
    assert module.Same().itself()
    assert module.channels(torch.ones(1, 2, 3, 3)) == 2
    with pytest.raises(jaxtyping.TypeCheckError):
        module.channels(torch.ones(2, 3, 3))
