"""How a demonstration says what it is doing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

Stage: TypeAlias = Callable[[str], AbstractContextManager[Callable[[int, int, str], object]]]
"""Opens what shows a stage's progress: it gets the title and gives a function of (done, total, text)."""


@contextmanager
def quietly(title: str) -> Iterator[Callable[[int, int, str], object]]:
    """A stage that nobody watches."""
    yield lambda done, total, text: None
