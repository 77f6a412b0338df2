"""Whether a browser will find a store at an address, asked before a page is shown that would not."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from stratascope.errors import StoreError
from stratascope.store.format.layout import FORMAT

PATIENCE = 10.0
"""Seconds to wait for an answer."""
_ZIP = b"PK"


def check_address(address: str) -> None:
    """Ask for what the page will ask first: the metadata of the store, or the head of a zip.

    Raises
    ------
    StoreError
        If nothing answers, or something that is no store.
    """
    parts = urllib.parse.urlsplit(address)
    if parts.path.endswith(".zip"):
        if _asked(address, 2) != _ZIP:
            raise StoreError(f"{address}: expected a zip of a store, found another file; check the address")
        return
    body = _asked(parts._replace(path=parts.path.rstrip("/") + "/zarr.json").geturl())
    try:
        found: Any = json.loads(body)
    except ValueError as error:
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
            body: bytes = answer.read(length) if length is not None else answer.read()
            return body
    except urllib.error.HTTPError as error:
        raise StoreError(
            f"{address}: expected a store, found that the server answers {error.code} {error.reason}; check the address"
        ) from error
    except (OSError, ValueError) as error:  # refused, unknown host, time-out, no valid address
        why = getattr(error, "reason", error)
        raise StoreError(f"{address}: expected a server that answers, found: {why}; check the address and the network") from error
