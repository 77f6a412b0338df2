"""Claims of writers on parts of a store in a bucket: small objects that are created if absent and renewed while the holder lives."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stratascope.errors import StoreError
from stratascope.store.io.bucket import Bucket
from stratascope.store.io.remote_errors import UnreachableError
from stratascope.store.io.writer_locks import holder_text, own_record, runs_here

RENEWED_EVERY = 30.0
"""Seconds after which a holder renews its claim."""
ABANDONED_AFTER = 180.0
"""Seconds without a renewal after which a claim counts as abandoned."""
LOOK_EVERY = 2.0
"""Seconds between two looks at a claim that another process holds."""


class ClaimHeldError(StoreError):
    """Another process that is alive holds a claim."""


class BucketClaim:
    """A claim that this process holds, renewed by a thread of its own."""

    def __init__(self, bucket: Bucket, key: str, token: str, version: dict[str, Any]) -> None:
        self._bucket, self._key, self._token, self._version = bucket, key, token, version
        self._count, self._lost = 0, False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"claim {key}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """StoreError where another process took the claim over, as after a long pause of this process."""
        if self._lost:
            raise StoreError(
                f"{self._bucket.name}: expected to hold {self._key}, found that another process took it over while this one stood still "
                f"for more than {ABANDONED_AFTER:.0f} s; run again"
            )

    def release(self) -> None:
        """Stop renewing and remove the claim."""
        self._over.set()
        self._thread.join()
        if not self._lost:
            with contextlib.suppress(StoreError):  # it is renewed no more and counts as abandoned soon
                self._bucket.remove([self._key])

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._over.wait(min(RENEWED_EVERY, 1.0)):
            if time.monotonic() - renewed < RENEWED_EVERY:
                continue
            self._count += 1
            try:
                version = self._bucket.replace(self._key, _record(self._token, self._count), self._version)
            except UnreachableError:
                self._lost = time.monotonic() - renewed > ABANDONED_AFTER
                continue
            renewed = time.monotonic()
            if version is None:
                self._lost = True
                return
            self._version = version


@contextmanager
def bucket_claim(bucket: Bucket, key: str, what: str) -> Iterator[Callable[[], None]]:
    """Hold the claim `key` on `what`, such as "block 3".

    A claim whose holder ended on this machine is taken over at once, another's once it is not renewed for ABANDONED_AFTER seconds.

    Yields
    ------
    callable
        Raises StoreError where the claim was lost; to be called before what must not be done without it.

    Raises
    ------
    ClaimHeldError
        Where another process holds it and is alive; it names that process.
    """
    token = uuid.uuid4().hex
    version = _take(bucket, key, what, token)
    claim = BucketClaim(bucket, key, token, version)
    try:
        yield claim.check
    finally:
        claim.release()


def _take(bucket: Bucket, key: str, what: str, token: str) -> dict[str, Any]:
    mine, seen, since = _record(token, 0), b"", time.monotonic()
    while True:
        if (version := bucket.create(key, mine)) is not None:
            return version
        version, held = bucket.version(key), bucket.get(key)
        if version is None or held is None:  # released meanwhile
            continue
        record = _parsed(held)
        alive = runs_here(record)
        if not seen:
            seen = held
        if alive or (alive is None and held != seen):
            raise ClaimHeldError(
                f"{bucket.name}: expected {what} to be free, found it being written by {holder_text(record)}; "
                "give each process its own share of the blocks, or wait until that one is done",
                in_python="rank i of n takes blocks i, i + n, ...",
            )
        if alive is False or time.monotonic() - since > ABANDONED_AFTER:
            if (version := bucket.replace(key, mine, version)) is not None:
                return version
            seen, since = b"", time.monotonic()
            continue
        time.sleep(LOOK_EVERY)


def _record(token: str, count: int) -> bytes:
    return json.dumps({**own_record(), "token": token, "renewed": count}).encode()


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None
