"""Options of the form name=value, given any number of times."""

from collections.abc import Sequence
from typing import Any

import typer


def pairs(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    """The values by name, each read as YAML reads it: numbers, true, lists, mappings, or text.

    Raises typer.BadParameter where there is no `=` or the value cannot be read.

    Example:
        >>> pairs(["block=repvgg", "depths=[1, 2, 3, 1]"], "--network")
        {'block': 'repvgg', 'depths': [1, 2, 3, 1]}
    """
    import yaml

    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{option} {text}: write name=value")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"{option} {text}: {' '.join(str(error).split())}") from error
    return found
