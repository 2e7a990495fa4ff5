"""Options of the form name=value, given any number of times."""

import ast
from collections.abc import Sequence
from typing import Any

from unbranch.detect.errors import InputError

WORDS = {"true": True, "false": False, "null": None}


def pairs(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    """The values by name. A value is a Python literal or true, false or null where it reads as one, a list or mapping as YAML
    writes it where it begins with ``[`` or ``{``, and else text. Of a name given twice the last value counts.

    Raises `InputError` where there is no ``=``, the name is none that an option can have, or a list or mapping cannot be read.

    Example:
        >>> pairs(["block=repvgg", "depths=[1, 2, 3, 1]", "lr=1e-3", "se=null"], "--network")
        {'block': 'repvgg', 'depths': [1, 2, 3, 1], 'lr': 0.001, 'se': None}
    """
    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"{option} {text}: write name=value")
        try:
            found[name] = WORDS[value] if value in WORDS else ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[name] = (
                _collection(value, f"{option} {text}") if value.lstrip()[:1] in ("[", "{") else value
            )
    return found


def _collection(value: str, where: str) -> Any:
    """Lists and mappings whose texts stand without quotes."""
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(
            f"{where}: the list or mapping cannot be read, is it closed? ({_problem(error)})"
        ) from error


def _problem(error: Exception) -> str:
    """What stands before YAML's drawing of the place."""
    return " ".join(str(error).partition(' in "')[0].split())
