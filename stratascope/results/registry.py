"""Every kind of result by name: its class and schema, whichever unit defines it."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from stratascope.errors import StoreError
from stratascope.results.file import ResultFile, check_schema, read_file, write_file
from stratascope.results.result import KINDS, Result
from stratascope.results.schema import ResultSchema

UNITS = ("stratascope.analysis", "stratascope.causal", "stratascope.probe")
"""Packages whose modules define results. A module of theirs that defines a subclass of `Result` is found by itself."""


@cache
def _import_units() -> None:
    """Import every module that may define a result."""
    for unit in UNITS:
        for module in pkgutil.walk_packages(import_module(unit).__path__, f"{unit}."):
            import_module(module.name)


def result_class(kind: str) -> type[Result] | None:
    """The class of a kind; None for a kind that this version does not know."""
    if kind not in KINDS:
        _import_units()
    return KINDS.get(kind)


def result_kinds() -> dict[str, type[Result]]:
    """Kind -> class of every kind of result."""
    _import_units()
    return dict(sorted(KINDS.items()))


def schema_of(kind: str) -> ResultSchema | None:
    """The schema of a kind; None for a kind that this version does not know."""
    found = result_class(kind)
    return found.schema() if found else None


def load_result(path: str | Path, kind: str | None = None) -> ResultFile:
    """Read the tables, arrays and attributes of a results file of any kind, checked against the kind's schema.

    Parameters
    ----------
    path
        Of the file.
    kind
        The kind that it must be of, such as `layer_curve`; any by default.

    Raises
    ------
    StoreError
        The file is missing or damaged, is no results file, is of another kind or a newer version, or does not match the schema.
    """
    file = read_file(path, kind=kind)
    if (schema := schema_of(file.kind)) is not None:
        check_schema(file, schema, path)
    return file


def open_result(path: str | Path) -> Any:
    """Load a results file as an object of its kind's class.

    Raises
    ------
    StoreError
        As `load_result`; also for a kind that this version does not know.
    """
    file = load_result(path)
    found = result_class(file.kind)
    if found is None:
        raise StoreError(f"{path}: expected a kind among {', '.join(result_kinds())}, found {file.kind!r}; upgrade stratascope")
    return found.from_contents(file)


def save_result(path: str | Path, result: ResultFile) -> None:
    """Write tables, arrays and attributes as a results file; errors as of `Result.save`."""
    write_file(path, result)
