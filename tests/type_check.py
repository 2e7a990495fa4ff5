"""The run-time check of the package's annotations, which tests/conftest.py installs over all of it."""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

# jaxtyping decorates method by method, where beartype cannot know which class `Self` is: it goes unchecked.
# An int is a float where one is asked for, as PEP 484 has it.
checked = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: Any}), is_pep484_tower=True))
