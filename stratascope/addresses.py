"""Addresses such as s3://bucket/store.zarr: recognise them, and remove their secrets."""

from __future__ import annotations

import re
from pathlib import PurePath

SCHEMES = frozenset("http https s3 s3a gs gcs az azure adl abfs abfss wasb wasbs hf file memory ftp hdfs".split())
"""Schemes of addresses; `pathlib` turns them into folders such as `s3:`."""
_USER = re.compile(r"(?i)(https?://)[^/\s'\"?#]*@|([a-z][a-z0-9+.-]*://)[^/\s'\"?#@]*:[^/\s'\"?#]*@")
"""`user:password@` of an address; the container of abfss://container@account has no colon."""
_SLASHED = re.compile(r"(?i)([a-z][a-z0-9+.-]*://)[^/\s'\"@]*:(?!\d*[/?#])[^\s'\"]*@")
"""The same with a password that holds a slash, which no client can read."""
_QUERY = re.compile(r"(?i)([a-z][a-z0-9+.-]*://[^\s'\"?]+)\?\S*?(?=[:;,)\]'\"]*(?:\s|$))")


def is_address(text: object) -> bool:
    """Whether a text is an address, not a path.

    >>> is_address("s3://bucket/store.zarr"), is_address("folder/store.zarr")
    (True, False)
    """
    return "://" in str(text)


def was_address(path: PurePath) -> bool:
    """Whether a path was an address: `Path("s3://bucket/a")` is the folder `s3:` with `bucket/a` in it."""
    first = path.parts[0] if path.parts else ""
    return first.endswith(":") and first[:-1].lower() in SCHEMES


def without_secrets(text: str) -> str:
    """Remove user names, passwords and query strings (possible signatures) from addresses in a text.

    >>> without_secrets("https://me:secret@host/a.zarr?sig=abc: expected a store")
    'https://host/a.zarr: expected a store'
    """
    if "://" not in text:
        return text
    for pattern in (_USER, _SLASHED):
        text = pattern.sub(lambda found: next(filter(None, found.groups())), text)
    return _QUERY.sub(r"\1", text)
