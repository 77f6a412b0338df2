"""Crashes of libraries in Rust: some are no `Exception`, and all print a hundred lines."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_REDIRECTING = threading.Lock()
"""Held while standard error leads elsewhere."""


def is_panic(error: BaseException) -> bool:
    """Whether an error is a crash of a library in Rust, some of which are no `Exception`."""
    return type(error).__module__.startswith("pyo3") or type(error).__name__ in ("PanicException", "RustPanic")


@contextmanager
def silenced_panics() -> Iterator[None]:
    """Keep what a crash of a library in Rust prints (a hundred lines) away from the terminal; anything else is printed at the end."""
    alone = _REDIRECTING.acquire(blocking=False)
    try:
        kept = os.dup(2) if alone else -1
    except OSError:  # no standard error at all
        kept = -1
    if kept < 0:
        try:
            yield
        finally:
            if alone:
                _REDIRECTING.release()
        return
    crashed = False
    with tempfile.TemporaryFile() as said:
        try:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.flush()
            os.dup2(said.fileno(), 2)
            yield
        except BaseException as error:
            crashed = is_panic(error) or (error.__cause__ is not None and is_panic(error.__cause__))
            raise
        finally:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            _REDIRECTING.release()
            said.seek(0)
            text = b"" if crashed else said.read()
            while text:
                text = text[os.write(2, text) :]
