"""In what peace a fold works."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's cycle collector waits until the work is done.

    A fold makes some hundred thousand objects, none of them garbage before its end; they would set off collections that walk all
    that torch's import left on the heap, which takes longer than the fold.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
