"""Where things are said: results on stdout, progress and remarks on stderr."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def out(*renderables: RenderableType) -> None:
    """Tables and lines for a person; 80 columns where there is no terminal."""
    console = Console()
    for renderable in renderables:
        if isinstance(renderable, str):
            console.print(renderable, markup=False, highlight=False)
        else:
            console.print(renderable)


def say(text: str) -> None:
    """One remark, not part of the result."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def out_json(data: Any) -> None:
    """One JSON document on stdout; what is not finite is text, since JSON has no number for it."""
    print(json.dumps(_finite(data), indent=2, allow_nan=False))  # noqa: T201 - the result


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    return data


@contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner with the seconds on stderr while something runs; nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(text)
        yield
