"""Build hook: the README as PyPI shows it, with links that lead to the repository."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAGES = {"Documentation": "blob/main/docs/commands.md", "Changelog": "blob/main/CHANGELOG.md", "Issues": "issues"}


class ReadmeHook(MetadataHookInterface):
    """Sets `readme` and `urls` of the package."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the README with absolute links, and the addresses that follow from that of the repository."""
        root = Path(self.root)
        spec = importlib.util.spec_from_file_location("repository", root / "docs" / "site" / "repository.py")
        assert spec is not None
        assert spec.loader is not None
        repository = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(repository)
        url = repository.repository_url(root)
        text = repository.absolute_links((root / "README.md").read_text("utf-8"), url)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        if url:
            metadata["urls"] = {"Repository": url, **{name: f"{url}/{page}" for name, page in PAGES.items()}}
