"""What the documentation's site shows beside the pages in docs/: the README as its first page, and the notebook as a page."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from repository import absolute_links, repository_url

ROOT = Path(__file__).resolve().parents[2]
ORDER: dict[str, list[str]] = {
    "": ["index.md", "questions.md", "tour.md", "commands.md"],
    "Guides": ["data.md", "question-sets.md", "study.md", "recording.md", "gpu.md", "families.md", "remote.md", "viewer.md"],
    "Methods": ["methods.md", "interventions.md"],
    "Reference": [
        "results.md", "findings-demo.md", "format.md", "benchmarks.md", "architecture.md",
        "glossary.md",
    ],
    "Python": [
        "api.md", "api/store.md", "api/probe.md", "api/analysis.md", "api/causal.md", "api/results.md", "api/report.md", "api/datasets.md",
        "api/extract.md", "api/errors.md",
    ],
}  # fmt: skip
"""Pages by section; those that are not there are left out, so that a page can be written at any time."""
MADE_FROM = {"tour.md": ROOT / "docs" / "tour.ipynb"}


def on_config(config: Any) -> Any:
    """The order of pages, and the address of the repository."""
    config["repo_url"] = repository_url() or None
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} | {"index.md"}
    there |= {name for name, source in MADE_FROM.items() if source.exists()}
    order = {**ORDER, "Methods": [*ORDER["Methods"], *linked_methods()]}
    nav: list[Any] = []
    for section, pages in order.items():
        found = [page for page in pages if page in there]
        nav += [{section: found}] if section and found else found
    listed = {page for pages in order.values() for page in pages}
    more = sorted(page for page in there - listed if "/" not in page)
    config["nav"] = nav + ([{"More": more}] if more else [])
    return config


def linked_methods() -> list[str]:
    """The pages of methods, in the order of their table."""
    return re.findall(r"\]\((methods/[\w-]+\.md)\)", (ROOT / "docs" / "methods.md").read_text("utf-8"))


def on_files(files: Files, config: Any) -> Files:
    """The two pages that are made from other files."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text("utf-8").replace("](docs/", "](")))
    for name, source in MADE_FROM.items():
        if source.exists():
            files.append(File.generated(config, name, content=notebook_text(json.loads(source.read_text("utf-8")))))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links out of docs/ lead to the repository."""
    url, there = str(config["repo_url"] or ""), {file.src_uri for file in files}
    first = page.file.src_uri == "index.md"
    folder = "" if first else str(PurePosixPath("docs") / PurePosixPath(page.file.src_uri).parent)

    def outside(match: re.Match[str]) -> str:
        target = match.group(1)
        stays = target in there if first else not target.startswith("../") or target.removeprefix("../") in there
        return match.group() if stays else absolute_links(match.group(), url, folder)

    return re.sub(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\((?!https?://|#)([^)#\s]+)(?:#[^)\s]*)?\)", outside, markdown)


def notebook_text(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its text, its code, and the outputs that are stored in it."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            held = output.get("data", {})
            if "image/png" in held:
                parts.append(f'<img alt="output of the cell above" src="data:image/png;base64,{"".join(held["image/png"]).strip()}">')
            else:
                text = "".join(output.get("text", held.get("text/plain", [])))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
