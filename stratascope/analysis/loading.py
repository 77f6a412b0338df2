"""Reading back a result of the right kind."""

from __future__ import annotations

from pathlib import Path

from stratascope.errors import InvalidInputError
from stratascope.store import ResultFile, load_result


def load_kind(path: Path | str, kind: str) -> ResultFile:
    """The file's contents; InvalidInputError if it holds results of another kind."""
    file = load_result(path)
    if file.kind != kind:
        raise InvalidInputError(f"{path}: expected results of kind {kind!r}, found {file.kind!r}")
    return file
