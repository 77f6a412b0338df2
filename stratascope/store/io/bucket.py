"""Objects of a store in a bucket: whole objects, conditional creation, listing, removal."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from stratascope.addresses import without_secrets
from stratascope.errors import StoreError
from stratascope.store.io.remote import Server, connect, refuse_unwritable
from stratascope.store.io.remote_errors import UnreachableError

PART_BYTES = 8 << 20
"""Bytes of a part of a multipart upload; smaller objects are sent in one request."""
PARTS_AT_ONCE = 4
"""Parts of an object that are sent at once; bounds the memory of an upload."""
Parts = Callable[[], Iterable[bytes]]
"""Returns the bytes of an object in pieces; called again for each attempt."""
Answer = TypeVar("Answer")
_TAKEN = ("AlreadyExistsError", "PreconditionError")
_UNKNOWN = ("NotImplementedError", "NotSupportedError")


class Bucket:
    """Objects under an address in a bucket of S3, GCS or Azure.

    Parameters
    ----------
    url
        Address of the store, such as s3://bucket/run.zarr.
    named
        Whether a bucket without a name in it is refused.

    Raises
    ------
    InvalidInputError
        For an address of a kind that is read-only.
    StoreError
        For an address without a name in the bucket, and for credentials that are missing or cannot be used.
    """

    def __init__(self, url: str, *, named: bool = True) -> None:
        scheme, _, rest = url.partition("://")
        refuse_unwritable(url)
        if named and scheme in ("s3", "gs", "az") and not rest.rstrip("/").partition("/")[2]:
            raise StoreError(
                f"{without_secrets(url)}: expected a bucket and a name in it, such as {scheme}://bucket/run.zarr, found no name"
            )
        self.name = without_secrets(url).rstrip("/")
        """The address for messages."""
        self._server = Server(url)
        self._client = connect(url)
        self._once = connect(url, retries=0)  # a conditional request must not be sent twice unseen

    def get(self, key: str) -> bytes | None:
        """The bytes of an object; None where there is none."""
        import obstore

        return self._absent_is_none("read", key, lambda: bytes(obstore.get(self._client, key).bytes()))

    def exists(self, key: str) -> bool:
        """Whether there is an object of this name."""
        return self.version(key) is not None

    def version(self, key: str) -> dict[str, Any] | None:
        """Entity tag and version of an object, for `replace`; None where there is none."""
        import obstore

        def head() -> dict[str, Any]:
            return _version(obstore.head(self._client, key))

        return self._absent_is_none("read", key, head)

    def put(self, key: str, parts: Parts) -> int:
        """Write an object whole, over what is there; the number of its bytes. Large ones are sent in parts, in bounded memory.

        Raises
        ------
        UnreachableError
            Where the server refuses, or does not answer well for `remote.PATIENCE` seconds; the object is then as it was.
        """
        import obstore

        size = 0

        def counted() -> Iterable[bytes]:
            nonlocal size
            size = 0
            for part in parts():
                size += len(part)
                yield part

        def send() -> None:
            head, rest = _first_bytes(counted(), PART_BYTES)
            if rest is None:
                obstore.put(self._client, key, head, use_multipart=False)
            else:
                whole = _chained(head, rest)
                obstore.put(self._client, key, whole, use_multipart=True, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)

        self._patiently("write", key, send)
        return size

    def create(self, key: str, data: bytes) -> dict[str, Any] | None:
        """Create a small object; its version, or None where there is one already.

        A service without conditional requests looks first, which a faster writer can outrun; see `conditional`.
        """
        return self._conditional(key, data, "create")

    def replace(self, key: str, data: bytes, version: dict[str, Any]) -> dict[str, Any] | None:
        """Replace a small object, if it still has this version; its new version, None where it has another or is gone."""
        return self._conditional(key, data, version)

    def _conditional(self, key: str, data: bytes, mode: Any) -> dict[str, Any] | None:
        import obstore

        request = self._server.request("write", key)
        while True:
            try:
                made = obstore.put(self._once, key, data, mode=mode, use_multipart=False)
                self._server.answered = True
                return _version(made)
            except BaseException as error:
                kind = type(error).__name__
                if kind in _TAKEN:
                    # a lost answer to an earlier attempt: the object is this writer's own
                    own = request.failures and self.get(key) == data
                    return self.version(key) if own else None
                if kind in _UNKNOWN:
                    return self._unconditional(key, data, mode)
                if isinstance(error, FileNotFoundError):
                    if mode == "create":
                        raise self._no_bucket(error) from error
                    return None
                time.sleep(request.pause(error))

    def _unconditional(self, key: str, data: bytes, mode: Any) -> dict[str, Any] | None:
        """What `create` and `replace` do at a service without conditional requests."""
        if self.version(key) != (None if mode == "create" else mode):
            return None
        self.put(key, lambda: [data])
        return self.version(key) if self.get(key) == data else None

    def conditional(self, folder: str) -> bool:
        """Write, read and remove an object in a folder; whether the service refuses to create an object that exists.

        Raises
        ------
        UnreachableError
            Where the credentials do not suffice, or the server does not answer.
        StoreError
            Where there is no such bucket.
        """
        key = f"{folder}/check-{uuid.uuid4().hex}"
        try:
            if self.create(key, b"first") is None:
                return False
            refused = self.create(key, b"second") is None
            return refused and self.get(key) == b"first"
        finally:
            self.remove([key])

    def keys(self, folder: str = "") -> dict[str, int]:
        """Key -> bytes of the objects in a folder, or of all."""
        import obstore

        def all_pages() -> dict[str, int]:
            pages = obstore.list(self._client, prefix=folder or None)
            return {entry["path"]: int(entry["size"]) for page in pages for entry in page}

        return self._patiently("list", f"{folder or 'objects'}", all_pages)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are absent are no error."""
        import obstore

        for key in keys:

            def away(key: str = key) -> None:
                obstore.delete(self._client, key)

            self._absent_is_none("remove", key, away)

    def _absent_is_none(self, purpose: str, key: str, call: Callable[[], Answer]) -> Answer | None:
        try:
            return self._patiently(purpose, key, call)
        except FileNotFoundError:
            return None

    def _patiently(self, purpose: str, key: str, call: Callable[[], Answer]) -> Answer:
        request = self._server.request(purpose, key)
        while True:
            try:
                answer = call()
            except FileNotFoundError as error:
                if purpose == "write":
                    raise self._no_bucket(error) from error
                raise
            except BaseException as error:
                time.sleep(request.pause(error))
            else:
                self._server.answered = True
                return answer

    def _no_bucket(self, error: BaseException) -> StoreError:
        return UnreachableError(f"{self.name}: expected a bucket to write into, found none of that name; create it, or check the address")


def _version(found: Any) -> dict[str, Any]:
    return {name: found[name] for name in ("e_tag", "version") if found.get(name)}


def _first_bytes(parts: Iterable[bytes], count: int) -> tuple[bytes, Iterable[bytes] | None]:
    """The first `count` bytes or more, and the rest; None where nothing is left."""
    taken, size = [], 0
    rest = iter(parts)
    for part in rest:
        taken.append(part)
        size += len(part)
        if size > count:
            return b"".join(taken), rest
    return b"".join(taken), None


def _chained(head: bytes, rest: Iterable[bytes]) -> Iterable[bytes]:
    yield head
    yield from rest
