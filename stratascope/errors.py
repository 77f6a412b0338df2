"""Exceptions of Stratascope; each is also a built-in one. Messages state what was expected, what was found and what to do."""

from __future__ import annotations

import re

from stratascope.addresses import without_secrets

__all__ = [
    "CaptureError",
    "ClusterLostError",
    "DownloadError",
    "InvalidInputError",
    "MissingExtraError",
    "NotRecordedError",
    "ProvenanceMismatchError",
    "StoreError",
    "StratascopeError",
    "TooFewExamplesError",
    "UnreadError",
    "UnwrittenBlockError",
]


_OPTIONS = re.compile(r" \(--[^()]*\)")
"""Options of the command line in a message."""


class StratascopeError(Exception):
    """Base class of all errors that Stratascope raises.

    Attributes
    ----------
    in_python
        What to do in Python, where the message names options of the command line in parentheses. `str` of the error shows it in their
        place; the command line shows the options.
    """

    in_python: str = ""

    def __init__(self, *args: object, in_python: str = "") -> None:
        super().__init__(*args)
        if in_python:
            self.in_python = in_python

    @property
    def message(self) -> str:
        """The message without the secrets of addresses, as the command line shows it."""
        return without_secrets(" ".join(map(str, self.args)))

    def __str__(self) -> str:
        return f"{_OPTIONS.sub('', self.message)} ({self.in_python})" if self.in_python else self.message


class InvalidInputError(StratascopeError, ValueError):
    """Data or a parameter is invalid."""


class MissingExtraError(StratascopeError, ImportError):
    """An optional dependency is not installed."""


class DownloadError(StratascopeError, OSError):
    """A file could not be downloaded."""


class ClusterLostError(StratascopeError, ConnectionError):
    """A scheduler or its workers died during a task."""


class StoreError(StratascopeError, ValueError):
    """A store is damaged, of another version, or no store at all."""


class UnreadError(StoreError):
    """A file of a store could not be read; nothing shows that it is damaged."""


class ProvenanceMismatchError(StoreError):
    """The provenance of a store differs from what would be written into it."""


class NotRecordedError(StratascopeError, KeyError):
    """The store lacks an array, layer, position or example."""


class UnwrittenBlockError(NotRecordedError):
    """Extraction has not written the requested examples yet."""


class TooFewExamplesError(InvalidInputError):
    """There are too few examples for a meaningful result."""


class CaptureError(StratascopeError, RuntimeError):
    """Captured activations do not agree with the model's own computation."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means that memory ran out."""
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError) or "an't start new thread" in text or "Cannot allocate memory" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a Rust library; some panics are no `Exception`."""
    return type(error).__module__.startswith("pyo3") or type(error).__name__ in ("PanicException", "RustPanic")
