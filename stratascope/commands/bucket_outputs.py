"""Outputs of commands in a bucket: a folder on this machine that is sent there while the command runs and when it ends."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import click

from stratascope.addresses import is_address
from stratascope.commands.terminal import SHOWN_AS, echo
from stratascope.errors import InvalidInputError, StoreError
from stratascope.store.io.bucket import Bucket, Parts
from stratascope.store.io.durable import PARTIAL
from stratascope.store.io.overview import bytes_text
from stratascope.store.io.remote import refuse_unwritable

SENT_EVERY = 30.0
"""Seconds between two times that finished files are sent while the command runs."""
LARGEST = 4 << 30
"""Bytes under an address that are fetched to go on from, at most."""
TEXT_ONLY = "stratascope.text_only"
"""Key of click's context: values are parsed to write a command, which does nothing."""
_PIECE = 8 << 20


class BucketOutput:
    """A file or folder under an address, with a copy on this machine on which the command works.

    What lies there is fetched first, so that a command goes on from earlier results as it does on a disk. Files that a command finished are
    sent every SENT_EVERY seconds and at the end, also after an error or an interruption; those that it removed are removed.

    Parameters
    ----------
    url
        Of the file or folder.
    writing
        Whether to check that the address can be written, and to send files.

    Raises
    ------
    StoreError
        The address cannot be read or written, or holds more than LARGEST bytes.
    """

    def __init__(self, url: str, *, writing: bool) -> None:
        self.url = url.rstrip("/")
        self._folder, (above, _, name) = Bucket(self.url), self.url.rpartition("/")
        self._above = Bucket(above, named=False)
        self._name = name
        self._root = Path(tempfile.mkdtemp(prefix="stratascope-"))
        self.local = self._root / name
        """The copy on this machine."""
        self._sent: dict[str, tuple[int, int]] = {}
        self._sending = threading.Lock()
        self._over = threading.Event()
        try:
            if writing:
                self._folder.conditional("check")
            self._fetch()
        except BaseException:
            shutil.rmtree(self._root, ignore_errors=True)
            raise
        self._thread = threading.Thread(target=self._send_now_and_then, name="bucket output", daemon=True) if writing else None
        if self._thread is not None:
            self._thread.start()

    def close(self) -> None:
        """Send what is left, and remove the copy on this machine.

        Raises
        ------
        UnreachableError
            Where files could not be sent; not while another error is on its way, which is then the one to be shown.
        """
        self._over.set()
        failing = sys.exc_info()[1] is not None
        try:
            if self._thread is not None:
                self._thread.join()
                self._send()
        except StoreError as error:
            if not failing:
                raise
            echo(f"stratascope: not everything was sent to {self.url}: {error.message}", err=True)
        finally:
            shutil.rmtree(self._root, ignore_errors=True)

    def _fetch(self) -> None:
        held = self._folder.keys()
        if (total := sum(held.values())) > LARGEST:
            raise InvalidInputError(
                f"{self.url}: expected at most {bytes_text(LARGEST)} to go on from, found {bytes_text(total)}; choose another address"
            )
        for key in held:
            self._keep(self.local / key, self._folder.get(key))
        if not held:
            self._keep(self.local, self._above.get(self._name))
        self._sent = self._state()

    @staticmethod
    def _keep(path: Path, data: bytes | None) -> None:
        if data is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def _state(self) -> dict[str, tuple[int, int]]:
        """Path -> time and size of every finished file; the root metadata of stores and the markers of blocks come last."""
        files = [self.local] if self.local.is_file() else [p for p in self.local.rglob("*") if p.is_file()]
        found = {}
        for path in files:
            key = "" if path == self.local else path.relative_to(self.local).as_posix()
            if PARTIAL in key or "/written/claims/" in f"/{key}":
                continue
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found[key] = (status.st_mtime_ns, status.st_size)
        return dict(sorted(found.items(), key=lambda item: _order(item[0])))

    def _send(self) -> None:
        with self._sending:
            state = self._state()
            for key, facts in state.items():
                if self._sent.get(key) != facts:
                    self._put(key)
                    self._sent[key] = facts
            gone = [key for key in self._sent if key not in state]
            for key in sorted(gone, key=_order, reverse=True):
                if key:
                    self._folder.remove([key])
                else:
                    self._above.remove([self._name])
                del self._sent[key]

    def _put(self, key: str) -> None:
        path = self.local / key if key else self.local
        parts = _parts(path)
        if path.suffix == ".html":  # its commands name the folder: for the reader that is the address
            page = path.read_bytes().replace(str(self.local).encode(), self.url.encode())
            parts = lambda: [page]  # noqa: E731 - as of `_parts`
        if key:
            self._folder.put(key, parts)
        else:
            self._above.put(self._name, parts)

    def _send_now_and_then(self) -> None:
        while not self._over.wait(SENT_EVERY):
            with contextlib.suppress(StoreError, OSError):  # at the end they are sent again, and it is said
                self._send()


def bucket_path(url: str, ctx: click.Context | None, *, writing: bool) -> Path:
    """The path on this machine that stands for an address while a command runs.

    Raises
    ------
    InvalidInputError
        For an address of a kind that cannot be written.
    StoreError
        For one that cannot be reached.
    """
    refuse_unwritable(url)
    if ctx is None or ctx.resilient_parsing or ctx.meta.get(TEXT_ONLY):
        return Path(url)
    shown: dict[str, str] = ctx.meta.setdefault(SHOWN_AS, {})
    for local, address in shown.items():
        if address == url.rstrip("/"):
            return Path(local)
    output = BucketOutput(url, writing=writing)
    shown[str(output.local)] = output.url
    ctx.call_on_close(output.close)
    return output.local


def converted(url: Any, param: click.Parameter | None, ctx: click.Context | None, kind: click.Path, *, writing: bool) -> Path:
    """As `bucket_path`; an address that cannot be used is an error of its option."""
    assert is_address(url)
    try:
        return bucket_path(str(url), ctx, writing=writing)
    except InvalidInputError as error:
        kind.fail(error.message, param, ctx)


def _parts(path: Path) -> Parts:
    def read() -> Any:
        with open(path, "rb") as file:
            while piece := file.read(_PIECE):
                yield piece

    return read


def _order(key: str) -> tuple[int, str]:
    root = key.count("/") <= 1 and key.endswith("zarr.json")
    return (2 if root else 1 if "written/c/" in key else 0, key)
