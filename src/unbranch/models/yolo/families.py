"""Families of detectors by name: whatever trains, saves or loads a detector asks here, and knows none by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unbranch.models import registry
from unbranch.models.yolo.data import YOLODescription
from unbranch.models.yolo.network import YOLO

DEFAULT_NETWORK = "yolov5n"


@dataclass(frozen=True)
class Family:
    """Detectors of one layout: how plain data become a description of it, and a description a network.

    networks: the names of its sizes, each beginning with the family's own.
    """

    name: str
    networks: Sequence[str]
    describe: Callable[[Mapping[str, Any]], YOLODescription]
    build: Callable[[Any], YOLO[Any]]


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Let `describe` and `build` know a family, and `unbranch.models.create` its networks.

    Raises `ValueError` for a name that is taken.
    """
    if family.name in _FAMILIES:
        raise ValueError(f"a family named {family.name!r} is registered already")
    _FAMILIES[family.name] = family
    for network in family.networks:
        registry.register(network, _named(network))


def _named(network: str) -> Callable[..., YOLO[Any]]:
    return lambda **options: build(describe({"network": network, **options}))


def families() -> tuple[Family, ...]:
    """All families, in the order they were registered."""
    return tuple(_FAMILIES.values())


def family_of(network: str) -> Family:
    """The family of a network by name. Raises `ValueError`, with the networks there are, for a name of none."""
    for family in _FAMILIES.values():
        if network.startswith(family.name):
            return family
    known = ", ".join(name for family in _FAMILIES.values() for name in family.networks)
    raise ValueError(f"network: {network!r}; known are {known}")


def describe(plain: Mapping[str, Any]) -> YOLODescription:
    """The description that plain data hold: `network`, yolov5n where it is not said, and what departs from it.

    Raises `ValueError` naming the key and the value.

    >>> describe({"network": "yolov7-tiny", "num_classes": 3}).strides
    (8, 16, 32)
    """
    network = plain.get("network", DEFAULT_NETWORK)
    if not isinstance(network, str):
        raise ValueError(f"network: {network!r}; a name is needed")
    return family_of(network).describe(plain)


def build(description: YOLODescription) -> YOLO[Any]:
    """The network of a description, freshly initialised.

    >>> build(describe({"network": "yolov5n", "num_classes": 2})).names
    ['class0', 'class1']
    """
    return family_of(description.network).build(description)
