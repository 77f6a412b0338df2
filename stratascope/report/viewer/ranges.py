"""The header Range of a request (RFC 9110, section 14)."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)
_DIGITS = 19


class UnsatisfiableRangeError(ValueError):
    """A range that names no byte of the file: the answer is 416."""


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte asked for, both inclusive.

    None where all is asked for, or where the header is not one range of bytes, which a server may leave out of account.

    Raises
    ------
    UnsatisfiableRangeError
        Where the range begins beyond the file, or asks for its last 0 bytes.
    """
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None or max(map(len, found.groups())) > _DIGITS:
        return None
    first, last = found.groups()
    if not first:
        if not last:
            return None
        if not int(last) or not size:
            raise UnsatisfiableRangeError
        return max(0, size - int(last)), size - 1
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise UnsatisfiableRangeError
    return int(first), min(int(last), size - 1) if last else size - 1
