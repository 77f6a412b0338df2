"""Where results lie: how their files end, and the folders and files beside a store where no other place is named."""

from __future__ import annotations

import re
from pathlib import Path

from stratascope.addresses import is_address, without_secrets

ENDING = ".zarr.zip"
"""Of results files."""


def beside(store: str | Path, ending: str) -> Path:
    """The path beside a store that has its name with another ending, such as STORE-results; in the working folder for an address."""
    if is_address(store):
        return Path(f"{Path(without_secrets(str(store))).stem}{ending}")
    path = Path(store)
    path = path.resolve() if path.name in ("", "..") else path
    return path.with_name(f"{path.stem}{ending}")


def results_folders(store: str | Path) -> list[Path]:
    """Where the results of a store lie if nothing else was said: STORE-results, where commands put them, and `results` beside the store,
    which several stores may share."""
    own = beside(store, "-results")
    return [own] if is_address(store) else [own, own.with_name("results")]


def file_name(*parts: str | None) -> str:
    """Parts joined by dashes; all but letters, digits, dots and underscores, which some file systems or shells refuse, are dashes, too."""
    return "-".join(re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts if part)
