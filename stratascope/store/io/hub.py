"""Stores in repositories of the Hugging Face Hub: hf:// addresses as web addresses with a token."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path

from stratascope.errors import StoreError
from stratascope.store.format.limits import MOST_METADATA
from stratascope.store.io.hub_cache import RepositoryCache, hub_home
from stratascope.store.io.remote_errors import UnreachableError

_ADDRESS = re.compile(
    r"hf://(?:(?P<kind>datasets/)|(?!datasets/|spaces/))(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>[^?#]+))?"
)
FORM = "hf://datasets/USER/NAME[@REVISION]/run.zarr"
TIMEOUT = 60.0
"""Seconds for the answer that names the commit."""


@dataclass(frozen=True)
class HubAddress:
    """Parts of an address on the Hub."""

    url: str
    """The address as it was given."""
    kind: str
    """`dataset` or `model`."""
    name: str
    """USER/NAME of the repository."""
    revision: str
    """Branch, tag or commit; main by default."""
    path: str
    """Folder in the repository; empty for none."""

    @classmethod
    def parse(cls, url: str) -> HubAddress:
        """Read an address.

        Raises
        ------
        StoreError
            For an address of another form.

        Examples
        --------
        >>> HubAddress.parse("hf://datasets/me/vsr@v2/run.zarr").revision
        'v2'
        """
        found = _ADDRESS.fullmatch(url.rstrip("/"))
        path = (found["path"] or "").strip("/") if found else ""
        if found is None or any(part in ("", ".", "..") for part in path.split("/") if path):
            raise StoreError(f"{url}: expected an address such as {FORM}, found another form")
        revision = urllib.parse.unquote(found["revision"] or "main")
        return cls(url.rstrip("/"), "dataset" if found["kind"] else "model", found["name"], revision, path)

    def web(self, revision: str = "") -> str:
        """Web address of the folder's files, at this or another revision."""
        quoted = urllib.parse.quote(revision or self.revision, safe="")
        path = urllib.parse.quote(self.path, safe="/:%@[]-._~")
        return f"{self.repository()}/resolve/{quoted}/{path}"

    def repository(self) -> str:
        """Web address of the repository."""
        return f"{hub_endpoint()}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def api(self) -> str:
        """Address of the API that describes the revision."""
        return f"{hub_endpoint()}/api/{self.kind}s/{self.name}/revision/{urllib.parse.quote(self.revision, safe='')}"


@dataclass(frozen=True)
class HubFolder:
    """A folder of a commit."""

    web: str
    """Web address of its files."""
    headers: dict[str, str]
    commit: str
    path: str
    cache: RepositoryCache
    offline: str
    """Why the Hub is not asked, such as "found HF_HUB_OFFLINE set"; empty where it is."""


def hub_folder(url: str) -> HubFolder:
    """A folder on the Hub; a branch or tag is pinned to the commit that it is now, or was when it was last read, without the Hub.

    Raises
    ------
    StoreError
        For an address of another form, or where the Hub is switched off by HF_HUB_OFFLINE and nothing of the revision was read before.
    UnreachableError
        Where the Hub does not answer and nothing was read before, or knows no such repository or revision.
    """
    found = HubAddress.parse(url)
    if not found.path:
        raise StoreError(f"{url}: expected an address such as {FORM}, found one without the path of a store")
    cache = RepositoryCache(found.repository())
    token = hub_token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    offline = "found HF_HUB_OFFLINE set" if _switched_off() else ""
    commit = cache.commit_of(found.revision) if offline else None
    if commit is None:
        check_online(url)
        try:
            commit = _commit(found.api(), headers, url)
        except UnreachableError as error:
            commit = cache.commit_of(found.revision)
            if error.status is not None or commit is None:
                raise
            offline = "found that the Hub does not answer"
            warnings.warn(
                f"{url}: the Hub does not answer; this reads what is in the cache, of commit {commit[:12]}, which may not be the latest",
                stacklevel=2,
            )
        else:
            cache.resolved(found.revision, commit)
    return HubFolder(found.web(commit), headers, commit, found.path, cache, offline)


def check_online(url: str) -> None:
    """StoreError where the Hub is switched off by HF_HUB_OFFLINE."""
    if _switched_off():
        raise StoreError(
            f"{url}: expected access to the Hub, found HF_HUB_OFFLINE set, and nothing in the cache; unset it, or give a copy on a disk"
        )


def _switched_off() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def hub_endpoint() -> str:
    """Address of the Hub, or of the one that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_token() -> str:
    """The token of HF_TOKEN, or the one that `hf auth login` wrote; empty without."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    try:
        return Path(os.environ.get("HF_TOKEN_PATH", hub_home() / "token")).read_text().strip()
    except OSError:
        return ""


def _commit(address: str, headers: dict[str, str], url: str) -> str:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT) as answer:
            commit = json.loads(answer.read(MOST_METADATA))["sha"]
    except urllib.error.HTTPError as error:
        advice = "check the name and the revision; for a private repository set HF_TOKEN, or run `hf auth login`"
        raise UnreachableError(
            f"{url}: expected a repository of the Hub, found: the server answers {error.code}; {advice}", status=error.code
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreachableError(f"{url}: expected an answer of the Hub, found none that names a commit; run again later") from error
    if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{7,64}", commit):
        raise UnreachableError(f"{url}: expected the commit of a revision, found something else; run again later")
    return commit
