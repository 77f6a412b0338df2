"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

UNITS = ("stratascope.store", "stratascope.datasets", "stratascope.scheduling")
MODULES = [
    "stratascope.addresses",
    "stratascope.commands.signature",
    "stratascope.extract.run.extraction",
    *(module.name for unit in UNITS for module in pkgutil.walk_packages(import_module(unit).__path__, f"{unit}.")),
    *UNITS,
]


@pytest.mark.parametrize("name", [name for name in MODULES if ">>>" in (import_module(name).__loader__.get_source(name) or "")])
def test_examples_in_docstrings_run(name: str) -> None:
    assert doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
