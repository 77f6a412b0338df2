"""Results: one class per kind, with schema, file, summary and figure; a registry of all kinds."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratascope.results.file import ResultFile
    from stratascope.results.registry import load_result, open_result, result_kinds, save_result
    from stratascope.results.result import Result
    from stratascope.results.stored_result import StoredResult

_MODULES = {
    "Result": "result",
    "ResultFile": "file",
    "StoredResult": "stored_result",
    "load_result": "registry",
    "open_result": "registry",
    "result_kinds": "registry",
    "save_result": "registry",
}

__all__ = ["Result", "ResultFile", "StoredResult", "load_result", "open_result", "result_kinds", "save_result"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
