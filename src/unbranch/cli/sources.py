"""The words for a model on the command line, and the model that each means."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from unbranch import models
from unbranch.deploy.said import first_line
from unbranch.detect.errors import InputError
from unbranch.fold.verify import RUN_ERRORS

KINDS = "timm:NAME, torchvision:NAME, unbranch:NAME, package.module:factory or file.py:factory"


def build(spec: str, options: Mapping[str, Any]) -> nn.Module:
    """The model of a `spec`, in eval mode; `options` go to whatever makes it.

    Raises `InputError` for a spec that names no model, and for options that its maker does not take.

    Example:
        >>> type(build("unbranch:repvgg_a0", {"num_classes": 10})).__name__
        'RepVGG'
    """
    family, colon, name = spec.rpartition(":")
    if not colon or not family or not name:
        raise InputError(f"{spec!r} names no model: write {KINDS}")
    make = _FAMILIES.get(family, _factory)
    maker = make(family, name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a network without weights is the same one each time
            model = maker(**options)
    except (*RUN_ERRORS, OSError) as error:
        raise InputError(f"{spec}: could not be built: {first_line(error, named=True)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec}: gave a {type(model).__name__}, not a torch.nn.Module")
    return model.eval()


Maker = Callable[..., Any]


def _ours(_family: str, name: str) -> Maker:
    return lambda **options: models.create(name, **options)


def _timm(_family: str, name: str) -> Maker:
    timm = _peer("timm")
    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}{_near(name, timm.list_models())}")
    return lambda **options: timm.create_model(name, pretrained=False, **options)


def _torchvision(_family: str, name: str) -> Maker:
    zoo = _peer("torchvision").models
    if name not in zoo.list_models():
        raise InputError(f"torchvision has no model {name!r}{_near(name, zoo.list_models())}")
    nothing: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(zoo.get_model_builder(name)).parameters:
        nothing["weights_backbone"] = None
    return lambda **options: zoo.get_model(name, **nothing, **options)


def _factory(family: str, name: str) -> Maker:
    module = _file(Path(family)) if family.endswith(".py") else _importable(family)
    where: Any = module
    for part in name.split("."):
        if part not in vars(where):
            public = [key for key, value in vars(where).items() if callable(value) and key[0] != "_"]
            raise InputError(f"{family} has no {name!r}{_near(part, public)}")
        where = vars(where)[part]
    if isinstance(where, nn.Module):
        return lambda: where
    if not callable(where):
        raise InputError(f"{family}:{name} is a {type(where).__name__}: name a function or a class")
    return where


_FAMILIES: dict[str, Callable[[str, str], Maker]] = {
    "unbranch": _ours,
    "timm": _timm,
    "torchvision": _torchvision,
}


def _peer(name: str) -> Any:
    """A package of other people's models that is no dependency of ours."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{name} is not installed: pip install {name}") from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # a pickled or deep-copied class looks for its module here
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (*RUN_ERRORS, OSError, ImportError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be imported: {first_line(error, named=True)}") from error
    finally:
        sys.path.pop(0)
    return module


def _importable(name: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except (*RUN_ERRORS, OSError, ImportError, SyntaxError) as error:
        hint = "" if "." in name else f"; a model is {KINDS}"
        raise InputError(f"{name}: cannot be imported: {first_line(error, named=True)}{hint}") from error
    finally:
        sys.path.pop(0)


def _near(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""
