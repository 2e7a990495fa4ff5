"""The face of the package: exactly the names that are meant."""

import types

import unbranch

PUBLIC = {
    "Affine",
    "Certificate",
    "NotLinear",
    "Report",
    "__version__",
    "blocks",
    "calibrate",
    "detect",
    "expand",
    "expand_",
    "explain",
    "load",
    "models",
    "reparameterize",
    "reparameterize_",
    "verify",
}


def test_the_public_names_are_the_ones_meant() -> None:
    assert set(unbranch.__all__) == PUBLIC
    assert len(unbranch.__all__) == len(PUBLIC)
    assert set(dir(unbranch)) >= PUBLIC


def test_nothing_is_public_by_accident() -> None:
    own_floors = {
        name
        for name, value in vars(unbranch).items()
        if isinstance(value, types.ModuleType) and value.__name__ == f"unbranch.{name}"
    }
    hook = {"jaxtyping"}  # the tests' import hook imports it into every module
    assert {name for name in vars(unbranch) if not name.startswith("_")} - own_floors - hook - PUBLIC == set()


def test_every_public_name_is_documented() -> None:
    undocumented = [name for name in PUBLIC - {"__version__"} if not vars(unbranch)[name].__doc__]
    assert undocumented == []
