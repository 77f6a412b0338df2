"""Target of a copy in a bucket."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from stratascope.errors import StoreError
from stratascope.store.io.bucket import Bucket, Parts
from stratascope.store.io.bucket_claims import bucket_claim
from stratascope.store.io.durable import lost_files
from stratascope.store.io.store_files import FILES_AT_ONCE, ROOT, begin, finish
from stratascope.store.io.writer_locks import CLAIMS
from stratascope.store.maintenance.copy_target import CopyTarget


class BucketTarget(CopyTarget):
    """Objects in a bucket, which are a store once the root metadata are there, at the end.

    Parameters
    ----------
    url
        Address of the copy.
    what
        Digest of what is copied: a later copy of the same goes on where this one stopped.

    Raises
    ------
    StoreError
        The address is taken, or cannot be written.
    UnreachableError
        The server refuses or does not answer.
    """

    at_once = FILES_AT_ONCE

    def __init__(self, url: str, what: str) -> None:
        self._bucket = Bucket(url)
        self.partial = self._bucket.name
        """Where files are until the copy is whole."""
        self._sizes: dict[str, int] = {}
        self._root = b""
        self._held = contextlib.ExitStack()
        self._check: Callable[[], None] = self._held.enter_context(bucket_claim(self._bucket, f"{CLAIMS}/creation", "the address"))
        try:
            self._left = begin(self._bucket, what)
        except BaseException:
            self._held.close()
            raise

    def kept(self, key: str) -> bytes | None:
        return self._bucket.get(key) if key in self._left else None

    def keep(self, key: str, data: bytes) -> int:
        self._sizes[key] = len(data)
        return len(data)

    def put(self, key: str, parts: Parts) -> int:
        self._check()
        if key == ROOT:
            self._root = b"".join(parts())
            return len(self._root)
        self._sizes[key] = self._bucket.put(key, parts)
        return self._sizes[key]

    def commit(self) -> None:
        """Compare what the bucket lists with what was written, then write the root metadata; StoreError where objects are missing."""
        found = {key: size for key, size in self._bucket.keys().items() if not key.startswith(f"{CLAIMS}/")}
        missing = sorted(self._sizes.keys() - found.keys())
        changed = sorted(key for key, size in self._sizes.items() if found.get(key, size) != size)
        if missing or changed:
            raise StoreError(lost_files(self.partial, len(self._sizes), missing, changed))
        self._bucket.remove(sorted(found.keys() - self._sizes.keys()))  # of an earlier copy of less
        finish(self._bucket, self._root, self._check)
        self._held.close()

    def discard(self, *, resumable: bool) -> None:
        if not resumable:
            with contextlib.suppress(StoreError):
                self._bucket.remove([*self._sizes, *self._left, f"{CLAIMS}/begun"])
        self._held.close()
