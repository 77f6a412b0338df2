"""Stratascope: find the layers in which a vision-language model encodes a spatial relation.

Names are imported when they are first used: `import stratascope` loads no torch, scikit-learn, dask or matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratascope import analysis, causal, datasets, errors, extract, probe, report, results, store
    from stratascope.store import ActivationStore

__version__ = "0.1.0"

_UNITS = ("analysis", "causal", "datasets", "errors", "extract", "probe", "report", "results", "store")
_NAMES = {"ActivationStore": "stratascope.store"}

__all__ = ["ActivationStore", "analysis", "causal", "datasets", "errors", "extract", "probe", "report", "results", "store"]


def __getattr__(name: str) -> Any:
    if name in _UNITS:
        return importlib.import_module(f"stratascope.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'stratascope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
