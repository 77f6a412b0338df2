"""Stratascope's exceptions: each is also a built-in one, and each message says what was expected, what was found and what to do."""

from __future__ import annotations

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


class StratascopeError(Exception):
    """Anything that Stratascope refuses or cannot do.

    Attributes
    ----------
    in_python
        What to do next in Python, where the message itself names options of the command line; `str` of the error adds it, the command line
        does not show it.
    """

    in_python: str = ""

    def __init__(self, *args: object, in_python: str = "") -> None:
        super().__init__(*args)
        if in_python:
            self.in_python = in_python

    @property
    def message(self) -> str:
        """What the command line shows, without the secrets of addresses."""
        return without_secrets(" ".join(map(str, self.args)))

    def __str__(self) -> str:
        return f"{self.message}; in Python {self.in_python}" if self.in_python else self.message


class InvalidInputError(StratascopeError, ValueError):
    """Data or an option is not what it must be."""


class MissingExtraError(StratascopeError, ImportError):
    """An optional part of the installation is absent."""


class DownloadError(StratascopeError, OSError):
    """A file could not be fetched."""


class ClusterLostError(StratascopeError, ConnectionError):
    """A scheduler, or its workers, died while they worked."""


class StoreError(StratascopeError, ValueError):
    """A store is not what it must be: foreign, of another version, or damaged."""


class UnreadError(StoreError):
    """A file of a store could not be read; nothing shows that it is damaged."""


class ProvenanceMismatchError(StoreError):
    """A store was made by something else than what would now be written into it."""


class NotRecordedError(StratascopeError, KeyError):
    """The store does not hold what was asked for: an array, a layer, a position, an example."""


class UnwrittenBlockError(NotRecordedError):
    """The store has a place for what was asked for, but extraction has not filled it yet."""


class TooFewExamplesError(InvalidInputError):
    """There is not enough data for an answer that means anything."""


class CaptureError(StratascopeError, RuntimeError):
    """What was captured from the model does not agree with the model itself."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that memory ran out."""
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError) or "an't start new thread" in text or "Cannot allocate memory" in text:
            return True
        error = error.__cause__ or error.__context__
    return False
