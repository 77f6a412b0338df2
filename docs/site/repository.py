"""Where the repository is: the one place from which the site and the package's page on PyPI take their links."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "REPOSITORY_URL"
"""Environment variable that comes before `repository` in pyproject.toml."""
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
_IMAGE_TYPES = {".png", ".svg", ".gif", ".jpg"}


def repository_url(root: Path = ROOT) -> str:
    """Address of the repository, of the variable or else of pyproject.toml (tool.stratascope), without a slash at its end; "" if none."""
    given = os.environ.get(VARIABLE)
    if given is None:
        given = tomllib.loads((root / "pyproject.toml").read_text("utf-8")).get("tool", {}).get("stratascope", {}).get("repository", "")
    return given.rstrip("/")


def absolute_links(text: str, url: str, folder: str = "") -> str:
    """Markdown whose relative links lead to the repository; without one they are plain text, and images are left out.

    Parameters
    ----------
    text
        A page of the repository.
    url
        Of the repository, as of `repository_url`.
    folder
        Folder of the page in the repository.
    """

    def absolute(match: re.Match[str]) -> str:
        image, label, target, anchor = match.groups(default="")
        if not url:
            return "" if image else label
        path = os.path.normpath(PurePosixPath(folder) / target)
        raw = image or PurePosixPath(target).suffix in _IMAGE_TYPES
        return f"{image}[{label}]({url}/{'raw' if raw else 'blob'}/main/{path}{anchor})"

    return _LINK.sub(absolute, text)
