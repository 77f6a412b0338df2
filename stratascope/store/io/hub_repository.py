"""A repository of the Hugging Face Hub: list, upload, commit and download files through huggingface_hub."""

from __future__ import annotations

import glob
import hashlib
import logging
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stratascope.errors import MissingExtraError, StoreError
from stratascope.store.io import remote
from stratascope.store.io.hub import FORM, HubAddress, check_online, hub_endpoint, hub_token
from stratascope.store.io.remote_errors import DOCS, PASSING, UnreachableError

Answer = TypeVar("Answer")
_TOKEN = "set HF_TOKEN to a token that may {}, or run `hf auth login`"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository."""

    size: int
    sha256: str
    """Hex; empty for a file that git holds itself."""
    blob: str
    """Git's hash, hex."""

    def holds(self, path: Path) -> bool:
        """Whether a file on this machine has the same bytes."""
        if path.stat().st_size != self.size:
            return False
        with open(path, "rb") as file:
            if self.sha256:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
            total = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
            while piece := file.read(1 << 20):
                total.update(piece)
            return total.hexdigest() == self.blob

    def is_of(self, addition: Any) -> bool:
        """Whether it has the bytes of an uploaded addition."""
        if self.sha256:
            return bool(addition.upload_info.sha256.hex() == self.sha256)
        content = addition.path_or_fileobj  # files that git holds itself are kept as bytes
        blob = isinstance(content, bytes) and hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return blob == self.blob


class HubRepository:
    """A data set's repository on the Hub.

    Parameters
    ----------
    url
        Address of a folder in it, such as hf://datasets/USER/NAME/run.zarr.
    purpose
        `write` or `read`; writing needs a token.

    Raises
    ------
    StoreError
        For an address of another form or of a model's repository, where the Hub is switched off, and without a token.
    MissingExtraError
        Without huggingface_hub.
    """

    def __init__(self, url: str, purpose: str) -> None:
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise MissingExtraError(
                "expected the package huggingface_hub for hf:// addresses, found none; run pip install 'stratascope[hub]', "
                "or in a checkout pip install '.[hub]'"
            ) from error
        self.address = HubAddress.parse(url)
        if self.address.kind != "dataset":
            raise StoreError(f"{url}: expected the repository of a data set, such as {FORM}, found a model's")
        check_online(url)
        token = hub_token()
        self._purpose = purpose
        if purpose == "write" and not token:
            raise StoreError(f"{url}: expected a token of the Hub, found none; {_TOKEN.format(purpose)}; {DOCS}")
        self._api = HfApi(endpoint=hub_endpoint(), token=token or False)
        self._which: dict[str, Any] = {"repo_id": self.address.name, "repo_type": "dataset"}

    def create(self, *, private: bool) -> None:
        """Create the repository, unless it exists."""
        self._asked(lambda: self._api.create_repo(**self._which, private=private, exist_ok=True))

    def head(self) -> str:
        """Commit of the revision."""
        return str(self._asked(lambda: self._api.repo_info(**self._which, revision=self.address.revision)).sha)

    def files(self, folder: str, revision: str, *, recursive: bool = True) -> dict[str, HubFile | None]:
        """Path in the repository -> each file of a folder; None for a folder in it. Empty where there is no such folder."""
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        def listed() -> dict[str, HubFile | None]:
            found: dict[str, HubFile | None] = {}
            try:
                for entry in self._api.list_repo_tree(**self._which, path_in_repo=folder or None, recursive=recursive, revision=revision):
                    if isinstance(entry, RepoFile):
                        found[entry.path] = HubFile(entry.size, entry.lfs.sha256 if entry.lfs else "", entry.blob_id)
                    else:
                        found[entry.path] = None
            except EntryNotFoundError:
                pass
            return found

        return self._asked(listed)

    def read(self, path: str, revision: str) -> bytes:
        """Bytes of a small file."""

        def read() -> bytes:
            with tempfile.TemporaryDirectory(prefix="stratascope-") as folder:
                return Path(self._api.hf_hub_download(**self._which, filename=path, revision=revision, local_dir=folder)).read_bytes()

        return self._asked(read)

    def upload(self, files: Mapping[str, Path | bytes]) -> list[Any]:
        """Upload the content of files; what `commit` takes. Content that the Hub has is not sent again."""
        from huggingface_hub import CommitOperationAdd

        additions = [CommitOperationAdd(path, content) for path, content in files.items()]
        self._asked(lambda: self._api.preupload_lfs_files(**self._which, additions=additions, revision=self.address.revision))
        for addition in additions:
            if addition._upload_mode == "regular" and isinstance(addition.path_or_fileobj, str):  # the file may go before the commit
                addition.path_or_fileobj = Path(addition.path_or_fileobj).read_bytes()
        return additions

    def commit(self, additions: Sequence[Any], message: str, *, parent: str | None = None, remove: Sequence[str] = ()) -> str:
        """Commit uploaded files and remove others, all at once; the new commit.

        Where the answer is lost, the commit is sent again only if the revision lacks what it does.

        Parameters
        ----------
        additions
            Of `upload`.
        message
            First line of the commit's message.
        parent
            The commit that the revision must be at, if any.
        remove
            Paths.

        Raises
        ------
        UnreachableError
            The Hub refuses or does not answer, or the revision is at another commit.
        """
        from huggingface_hub import CommitOperationDelete

        operations = [*additions, *(CommitOperationDelete(path) for path in remove)]
        settings: dict[str, Any] = {"revision": self.address.revision, "commit_message": message, "parent_commit": parent}
        lost = False

        def send() -> str:
            nonlocal lost
            if lost and (landed := self._landed(additions, remove)):
                return landed
            try:
                return str(self._api.create_commit(**self._which, operations=operations, **settings).oid)
            except Exception as error:
                status = _status(error)
                lost |= status is None or status in PASSING
                raise

        return self._asked(send)

    def _landed(self, additions: Sequence[Any], remove: Sequence[str]) -> str:
        """Commit at which the revision has all that a commit adds and nothing that it removes; empty where it does not."""
        head = self.head()
        held = self.files("", head, recursive=False) | self.files(self.address.path, head)
        there = all((file := held.get(one.path_in_repo)) is not None and file.is_of(one) for one in additions)
        return head if there and not any(path in held for path in remove) else ""

    def download(self, folder: Path, revision: str) -> None:
        """Download all files of the address into a folder; files that are there and whole are kept."""
        from huggingface_hub import snapshot_download

        self._asked(
            lambda: snapshot_download(
                **self._which,
                revision=revision,
                allow_patterns=f"{glob.escape(self.address.path)}/*",
                local_dir=folder,
                endpoint=self._api.endpoint,
                token=self._api.token,
            )
        )

    def _asked(self, call: Callable[[], Answer]) -> Answer:
        """The answer of the Hub; asked again while it is overloaded or out of reach, up to `remote.PATIENCE` seconds.

        Raises
        ------
        UnreachableError
            Naming the address and what to do; the words of the server are left out.
        """
        started, longest, answered = time.monotonic(), remote.FIRST_PAUSE, False
        while True:
            try:
                with _silent():
                    return call()
            except (StoreError, MemoryError, KeyboardInterrupt):
                raise
            except Exception as error:
                status = _status(error)
                answered |= status is not None
                known = status is not None or _is_transport(error)
                if not known:
                    raise
                pause = random.uniform(longest / 2, longest)
                patience = remote.PATIENCE if answered else remote.FIRST_PATIENCE
                if (status is None or status in PASSING) and time.monotonic() - started + pause < patience:
                    time.sleep(pause)
                    longest = min(2 * longest, remote.LONGEST_PAUSE)
                    continue
                raise UnreachableError(self._sentence(status), status=status) from error

    def _sentence(self, status: int | None) -> str:
        said = f"{self.address.url}: expected to {self._purpose} on the Hub, found: "
        if status is None:
            return f"{said}no server answers ({hub_endpoint()}); check the network, then run the same command again"
        advice = "run the same command again later"
        if status == 401:
            advice = f"the token is missing or not accepted: {_TOKEN.format(self._purpose)}"
        elif status == 403:
            advice = f"the token may not {self._purpose} there: {_TOKEN.format(self._purpose)}"
        elif status == 404:
            advice = f"check the name and the revision; for a private repository {_TOKEN.format(self._purpose)}"
        elif status in (409, 412):
            advice = "another program changed the repository meanwhile: run the same command again"
        elif status not in PASSING:
            advice = "check the address"
        return f"{said}the server answers {status}; {advice}; {DOCS}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """HTTP status of the answer that an error is about."""
    for one in _chain(error):
        if isinstance(status := getattr(getattr(one, "response", None), "status_code", None), int):
            return status
    return None


def _is_transport(error: BaseException) -> bool:
    """Whether an error is about a connection."""
    return any(isinstance(one, ConnectionError | TimeoutError) or type(one).__module__.startswith("http") for one in _chain(error))


@contextmanager
def _silent() -> Iterator[None]:
    """Without the progress bars and log messages of huggingface_hub."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level, shown = logger.level, not are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    if shown:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            enable_progress_bars()
