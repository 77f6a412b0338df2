"""Download one file over HTTP: resumable, with retries, a size limit, a check, and an atomic rename."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from stratascope.errors import DownloadError, InvalidInputError

CHUNK = 1 << 16
PROGRESS = 1 << 18
"""An attempt that brought a file this many bytes further than ever before does not count as failed."""

LONGEST_PAUSE = 60.0
"""Seconds, whatever the server asks for."""

_PASSING = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses after which the same request may succeed."""


@dataclass(frozen=True)
class Patience:
    """Time-outs and retries for a server."""

    retries: int = 5
    """Further attempts after one that failed and brought nothing new."""
    pause: float = 1.0
    """Seconds before the second attempt; doubled from attempt to attempt."""
    timeout: float = 30.0
    """Seconds without a byte, or at fewer than `slowest` bytes a second, after which a connection is given up."""
    slowest: float = 1024.0

    def before(self, attempt: int, asked: float | None) -> float:
        """Seconds to wait before an attempt, 1 the first after a failure; `asked` is what the server's Retry-After says."""
        return float(min(max(self.pause * 2.0 ** (attempt - 1), asked or 0.0), LONGEST_PAUSE))


class Budget:
    """Byte limit shared by several downloads."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._lock = threading.Lock()

    def spend(self, count: int) -> None:
        """Raises BudgetSpentError once more than the limit has been spent."""
        with self._lock:
            self.used += count
            if self.used > self.limit:
                raise BudgetSpentError(f"the limit of {self.limit:,} bytes in all is reached")


class BudgetSpentError(DownloadError):
    """The bytes that all downloads share are spent."""


class UnreachableError(DownloadError):
    """The server gave no usable answer, however often it was asked."""


class StoppedError(DownloadError):
    """The download was told to stop; what has come is kept."""


class UnwritableError(DownloadError):
    """The file cannot be written: the disk is full, or the folder may not be written to."""


class _FailedAttempt(Exception):
    """One attempt that failed in a way that may pass."""

    def __init__(self, reason: str, after: float | None = None, most: int | None = None) -> None:
        super().__init__(reason)
        self.after = after
        self.most = most
        """Further attempts that are worth it, where they are fewer than the patience allows."""


def download(
    url: str,
    path: Path,
    *,
    check: Callable[[Path], str | None] | None = None,
    largest: int | None = None,
    budget: Budget | None = None,
    patience: Patience = Patience(),
    stop: threading.Event | None = None,
    tell: Callable[[int], object] = lambda count: None,
) -> None:
    """Download `url` to the file `path` atomically.

    Received bytes are in `path` + ".part" until then; a later call resumes there if the server supports it and still has the same
    file (by its entity tag), else from the beginning.

    Parameters
    ----------
    check
        Function of the file that returns what is wrong with it, or None.
    largest
        Largest size of the file in bytes.
    budget
        Byte limit of all downloads together.
    stop
        Set by another thread to end the download soon.
    tell
        Called with the number of bytes of each received piece.

    Raises
    ------
    DownloadError
        Naming the address and the reason: refused by the server, too large, not what was expected, or (UnreachableError) still failing
        after all attempts.
    """
    _expect_http(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, tag = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.etag")
    failures, furthest, stop = 0, part.stat().st_size if part.exists() else 0, stop or threading.Event()
    while True:
        try:
            _attempt(url, part, tag, largest, budget, patience, stop, tell)
            problem = check(part) if check else None
            if problem:
                part.unlink(missing_ok=True)
                raise _FailedAttempt(problem, most=1)
            part.replace(path)
            tag.unlink(missing_ok=True)
            return
        except _FailedAttempt as failed:
            size = part.stat().st_size if part.exists() else 0
            if size >= furthest + PROGRESS:
                furthest, failures = size, 0
            failures += 1
            most = patience.retries if failed.most is None else min(failed.most, patience.retries)
            if failures > most:
                kind = UnreachableError if failed.most is None else DownloadError
                raise kind(f"{url}: {failed} (asked {failures} times)") from failed
            if stop.wait(patience.before(max(failures, 1), failed.after)):
                raise StoppedError(f"{url}: stopped") from None


def _expect_http(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or any(ord(c) <= 32 for c in url):
        raise InvalidInputError(f"expected an http or https address, found {url!r}")


def _attempt(
    url: str,
    part: Path,
    tag: Path,
    largest: int | None,
    budget: Budget | None,
    patience: Patience,
    stop: threading.Event,
    tell: Callable[[int], object],
) -> None:
    """Bring `part` to its full length, or raise _FailedAttempt with what has come kept."""
    start = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"User-Agent": "stratascope", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": tag.read_text(encoding="utf-8")}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=patience.timeout) as answer:
            start = _agreed_start(answer, start, part, tag)
            length = _length(answer)
            if largest is not None and start + (length or 0) > largest:
                tag.unlink(missing_ok=True)
                raise DownloadError(f"{url}: expected at most {largest:,} bytes, found {start + (length or 0):,}")
            with _opened(part, "ab" if start else "wb") as file:
                came = _copy(url, answer, file, start, largest, budget, patience, stop, tell)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is longer than the file now is
            part.unlink(missing_ok=True)
            raise _FailedAttempt("the file became shorter") from error
        if error.code in _PASSING:
            raise _FailedAttempt(f"HTTP {error.code} {error.reason}", after=_seconds(error.headers.get("Retry-After"))) from error
        raise DownloadError(f"{url}: HTTP {error.code} {error.reason}") from error
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException) as error:  # timeouts, cut connections, no such host, nonsense instead of HTTP
        raise _FailedAttempt(str(getattr(error, "reason", None) or error) or type(error).__name__) from error
    if length is not None and came != length:
        raise _FailedAttempt(f"the connection ended after {came:,} of {length:,} bytes")
    if not start + came:
        raise _FailedAttempt("the file is empty", most=1)


def _agreed_start(answer: Any, start: int, part: Path, tag: Path) -> int:
    """Where the answer begins in the file: at `start` if the server goes on there, else at 0."""
    if answer.status == 206:
        if not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise _FailedAttempt("the server went on at another place than it was asked to")
        return start
    entity = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    if entity and not entity.startswith("W/"):  # a weak tag does not promise the same bytes
        tag.write_text(entity, encoding="utf-8")
    else:
        tag.unlink(missing_ok=True)
    return 0


def _copy(
    url: str,
    answer: Any,
    file: IO[bytes],
    start: int,
    largest: int | None,
    budget: Budget | None,
    patience: Patience,
    stop: threading.Event,
    tell: Callable[[int], object],
) -> int:
    came, began = 0, time.monotonic()
    while piece := answer.read1(CHUNK):
        if stop.is_set():
            raise StoppedError(f"{url}: stopped")
        if budget is not None:
            budget.spend(len(piece))
        came += len(piece)
        if largest is not None and start + came > largest:
            raise DownloadError(f"{url}: expected at most {largest:,} bytes, found more")
        _write(file, piece)
        tell(len(piece))
        elapsed = time.monotonic() - began
        if elapsed > patience.timeout and came < patience.slowest * elapsed:
            raise _FailedAttempt(f"only {came:,} bytes came in {elapsed:.0f} seconds")
    return came


def _opened(part: Path, mode: str) -> IO[bytes]:
    try:
        return part.open(mode)
    except OSError as error:
        raise UnwritableError(f"{part}: cannot be written ({error.strerror or error})") from error


def _write(file: IO[bytes], piece: bytes) -> None:
    """Write at once, so that a full disk is not taken for a failure of the network."""
    try:
        file.write(piece)
        file.flush()
    except OSError as error:
        raise UnwritableError(f"{file.name}: cannot be written ({error.strerror or error})") from error


def _length(answer: Any) -> int | None:
    value = answer.headers.get("Content-Length")
    return int(value) if value is not None and value.isdecimal() else None


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdecimal() else None
