"""Networks in all the forms that the verbs take; a new form is one file here and one line below."""

from collections.abc import Callable
from pathlib import Path

from unbranch.cli.forms.network import Asked, Network
from unbranch.detect.errors import InputError


def _onnx(asked: Asked) -> Network:
    from unbranch.cli.forms.onnx_model import OnnxNetwork

    return OnnxNetwork.open(asked)


def _program(asked: Asked) -> Network:
    from unbranch.cli.forms.program import ProgramNetwork

    return ProgramNetwork.open(asked)


def _module(asked: Asked) -> Network:
    from unbranch.cli.forms.module import ModuleNetwork

    return ModuleNetwork.open(asked)


FILES: dict[str, Callable[[Asked], Network]] = {".onnx": _onnx, ".pt2": _program}


def open_network(asked: Asked) -> Network:
    """The network that was asked for, in the form its name says: a file by its suffix, anything else a module.

    Raises `InputError` for a name that means nothing and for options that the form does not have.
    """
    opener = FILES.get(Path(asked.spec).suffix)
    if opener is None:
        return _module(asked)
    if not Path(asked.spec).is_file():
        raise InputError(f"{asked.spec}: there is no such file")
    return opener(asked)


__all__ = ["FILES", "Asked", "Network", "open_network"]
