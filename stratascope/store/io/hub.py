"""Stores in repositories of the Hugging Face Hub: hf:// addresses as web addresses with a token."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from stratascope.errors import StoreError
from stratascope.store.io.remote_errors import UnreachableError

_ADDRESS = re.compile(
    r"hf://(?:(?P<kind>datasets/)|(?!datasets/|spaces/))(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?/(?P<path>[^?#]+)"
)
FORM = "hf://datasets/USER/NAME[@REVISION]/run.zarr"
TIMEOUT = 60.0
"""Seconds for the answer that names the commit."""


def hub_address(url: str) -> tuple[str, dict[str, str]]:
    """Web address and headers of a folder on the Hub; a branch or tag is pinned to the commit that it is now.

    Raises
    ------
    StoreError
        For an address of another form, or where the Hub is switched off by HF_HUB_OFFLINE.
    UnreachableError
        Where the Hub does not answer, or knows no such repository or revision.
    """
    found = _ADDRESS.fullmatch(url.rstrip("/"))
    if found is None:
        raise StoreError(f"{url}: expected an address such as {FORM}, found another form")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise StoreError(f"{url}: expected access to the Hub, found HF_HUB_OFFLINE set; unset it, or give a copy on a disk")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = hub_token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    revision = found["revision"] or "main"
    quoted = urllib.parse.quote(urllib.parse.unquote(revision), safe="")
    kind = found["kind"] or ""
    commit = _commit(f"{endpoint}/api/{kind or 'models/'}{found['name']}/revision/{quoted}", headers, url)
    path = urllib.parse.quote(found["path"], safe="/:%@[]-._~")
    return f"{endpoint}/{kind}{found['name']}/resolve/{commit}/{path}", headers


def hub_token() -> str:
    """The token of HF_TOKEN, or the one that `hf auth login` wrote; empty without."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    try:
        return Path(os.environ.get("HF_TOKEN_PATH", home / "token")).read_text().strip()
    except OSError:
        return ""


def _commit(address: str, headers: dict[str, str], url: str) -> str:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT) as answer:
            commit = json.load(answer)["sha"]
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
