"""Default names and folders of results files."""

from __future__ import annotations

import re
from pathlib import Path

from stratascope.addresses import is_address, without_secrets

ENDING = ".zarr.zip"
"""Suffix of results files."""


def beside(store: str | Path, ending: str) -> Path:
    """Path beside a store with its name and another ending, such as STORE-results; in the working folder for an address."""
    if is_address(store):
        return Path(f"{Path(without_secrets(str(store))).stem}{ending}")
    path = Path(store)
    path = path.resolve() if path.name in ("", "..") else path
    return path.with_name(f"{path.stem}{ending}")


def results_folders(store: str | Path) -> list[Path]:
    """Default folders of the results of a store: STORE-results, and `results` beside the store, which stores may share."""
    own = beside(store, "-results")
    return [own] if is_address(store) else [own, own.with_name("results")]


def file_name(*parts: str | None) -> str:
    """Parts joined by dashes; characters other than letters, digits, dots and underscores become dashes."""
    return "-".join(re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts if part)
