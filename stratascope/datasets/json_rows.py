"""Stream the rows of arrays in a large JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

CHUNK = 1 << 20
_SPACE = " \t\r\n"
_AFTER = tuple(_SPACE + ",:]}")
"""What may follow a value."""


def json_rows(file: IO[str], chunk: int = CHUNK) -> Iterator[tuple[str, Any]]:
    """(name, row) for each row of each array of the object in `file`; a member that is no array comes as one row.

    Raises
    ------
    ValueError
        If the text is not one JSON object (json.JSONDecodeError is one).
    """
    return _Text(file, chunk).members()


class _Text:
    """The part of a text that is not yet read off, and where more of it comes from."""

    def __init__(self, file: IO[str], chunk: int) -> None:
        self._file, self._chunk = file, chunk
        self._text, self._at, self._ended = "", 0, False
        self._decode = json.JSONDecoder().raw_decode

    def members(self) -> Iterator[tuple[str, Any]]:
        self._expect("{")
        if self._next() == "}":
            self._at += 1
        else:
            while True:
                name = self._value()
                if not isinstance(name, str):
                    raise ValueError(f"expected a name, found {name!r}")
                self._expect(":")
                if self._next() == "[":
                    for row in self._rows():
                        yield name, row
                else:
                    yield name, self._value()
                if self._expect(",}") == "}":
                    break
        if self._next():
            raise ValueError("expected the end after the JSON object, found more text")

    def _rows(self) -> Iterator[Any]:
        self._expect("[")
        if self._next() == "]":
            self._at += 1
            return
        while True:
            yield self._value()
            if self._expect(",]") == "]":
                return

    def _value(self) -> Any:
        self._next()
        wanted = self._chunk
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more(wanted):
                    raise
                wanted *= 2  # so that a long row is not tried too often
                continue
            if self._text[end : end + 1] not in _AFTER and self._more(wanted):  # "1", and "1." too, may be the begin of a number
                continue
            self._at = end
            return value

    def _next(self) -> str:
        """The next character that is no white space, not taken; "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def _expect(self, wanted: str) -> str:
        found = self._next()
        if not found or found not in wanted:
            raise ValueError(f"expected {' or '.join(wanted)} in the JSON text, found {found or 'its end'}")
        self._at += 1
        return found

    def _more(self, wanted: int | None = None) -> bool:
        if self._ended:
            return False
        piece = self._file.read(wanted or self._chunk)
        self._ended = not piece
        self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)
