"""Whether a browser will find a store at an address, asked before a page is shown that would not."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from stratascope.errors import InvalidInputError, StoreError
from stratascope.store.format.layout import FORMAT
from stratascope.store.format.limits import MOST_METADATA, check_metadata_size

PATIENCE = 10.0
"""Seconds to wait for an answer."""
_ZIP = b"PK"


_LATER = "run again, or check the host"


def check_page_can_ask(address: str) -> None:
    """Refuse an address that no page of a browser can ask for, and whose secrets would end up in the page.

    Raises
    ------
    InvalidInputError
        For one that is malformed, of another scheme than http(s), or holds a user name or a query.
    """
    if not address.startswith(("http://", "https://")):
        raise InvalidInputError(
            f"expected a path or an http(s) address, found {address}: a web page cannot sign requests to a bucket; give the bucket's "
            "https address, or fetch the store first with `stratascope copy`"
        )
    try:
        parts = urllib.parse.urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise InvalidInputError(f"{address}: expected an address such as https://host/store.zarr, found: {error}") from error
    if "@" in parts.netloc or parts.query:
        found = "a user name" if "@" in parts.netloc else "a query after `?`"
        raise InvalidInputError(
            f"{address}: expected an address without user name and query, found one with {found}: a page in a browser cannot use it for "
            "all files of a store; fetch the store first with `stratascope copy`"
        )


def check_address(address: str) -> None:
    """Ask for what the page will ask first: the metadata of the store, or the head of a zip.

    Raises
    ------
    StoreError
        If nothing answers, or something that is no store.
    InvalidInputError
        As `check_page_can_ask`.
    """
    check_page_can_ask(address)
    parts = urllib.parse.urlsplit(address)
    if parts.path.endswith(".zip"):
        if _asked(address, 2) != _ZIP:
            raise StoreError(f"{address}: expected a zip of a store, found another file; check the address")
        return
    body = _asked(parts._replace(path=parts.path.rstrip("/") + "/zarr.json").geturl())
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{address}: expected the zarr.json of a store, found no JSON; check the address") from error
    attributes = found.get("attributes") if isinstance(found, dict) else None
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise StoreError(f"{address}: expected a store of Stratascope, found other JSON in its zarr.json; check the address")


def _asked(address: str, length: int | None = None) -> bytes:
    """The answer of an address, or its first bytes, which a server must be able to send alone."""
    headers = {} if length is None else {"Range": f"bytes=0-{length - 1}"}
    quoted = urllib.parse.quote(address, safe="/:?&=%@[]-._~+,;!*'()$")
    try:
        with urllib.request.urlopen(urllib.request.Request(quoted, headers=headers), timeout=PATIENCE) as answer:
            if length is not None and answer.status != 206:
                raise StoreError(
                    f"{address}: expected a server that answers Range requests, found one that does not; docs/viewer.md names some that do"
                )
            most = length if length is not None else MOST_METADATA + 1
            body: bytes = answer.read(most)
            check_metadata_size(len(body), address)
            if len(body) < most and answer.length:  # bytes that were promised
                raise StoreError(
                    f"{address}: expected a whole answer, found that the server cuts it off after {len(body):,} bytes; {_LATER}"
                )
            return body
    except StoreError:
        raise
    except urllib.error.HTTPError as error:
        raise StoreError(
            f"{address}: expected a store, found that the server answers {error.code} {error.reason}; check the address"
        ) from error
    except http.client.IncompleteRead as error:
        raise StoreError(
            f"{address}: expected a whole answer, found that the server cuts it off after {len(error.partial):,} bytes; {_LATER}"
        ) from error
    except (http.client.HTTPException, http.client.RemoteDisconnected) as error:
        raise StoreError(
            f"{address}: expected a server that speaks HTTP, found one that does not ({_kind(error)}); check the address"
        ) from error
    except (OSError, ValueError) as error:  # refused, unknown host, time-out, no valid address
        why = getattr(error, "reason", error)
        raise StoreError(f"{address}: expected a server that answers, found: {why}; check the address and the network") from error


def _kind(error: Exception) -> str:
    """What a server did instead of answering; never its own words, which may be anything."""
    if isinstance(error, http.client.RemoteDisconnected):
        return "it closes the connection without an answer"
    return "its first line is no status" if isinstance(error, http.client.BadStatusLine) else type(error).__name__
