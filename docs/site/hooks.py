"""What the documentation's site shows beside the pages in docs/: the README as its first page, and the notebook as a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
ORDER: dict[str, list[str]] = {
    "": ["index.md", "tour.md", "commands.md"],
    "Guides": ["data.md", "question-sets.md", "study.md", "recording.md", "gpu.md", "families.md", "remote.md", "viewer.md"],
    "Reference": [
        "methods.md", "interventions.md", "results.md", "findings-demo.md", "format.md", "benchmarks.md", "architecture.md",
    ],
    "Python": [
        "api.md", "api/store.md", "api/probe.md", "api/analysis.md", "api/causal.md", "api/results.md", "api/report.md", "api/datasets.md",
        "api/extract.md", "api/errors.md",
    ],
}  # fmt: skip
"""Pages by section; those that are not there are left out, so that a page can be written at any time."""
MADE_FROM = {"tour.md": ROOT / "docs" / "tour.ipynb"}


def on_config(config: Any) -> Any:
    """The order of pages."""
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} | {"index.md"}
    there |= {name for name, source in MADE_FROM.items() if source.exists()}
    nav: list[Any] = []
    for section, pages in ORDER.items():
        found = [page for page in pages if page in there]
        nav += [{section: found}] if section and found else found
    listed = {page for pages in ORDER.values() for page in pages}
    more = sorted(page for page in there - listed if "/" not in page)
    config["nav"] = nav + ([{"More": more}] if more else [])
    return config


def on_files(files: Files, config: Any) -> Files:
    """The two pages that are made from other files."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text("utf-8").replace("](docs/", "](")))
    for name, source in MADE_FROM.items():
        if source.exists():
            files.append(File.generated(config, name, content=notebook_text(json.loads(source.read_text("utf-8")))))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links out of docs/ lead to the repository."""
    base = f"{config['repo_url']}/blob/main"
    text = re.sub(r"\]\(\.\./([^)]+)\)", rf"]({base}/\1)", markdown)
    if page.file.src_uri == "index.md":
        there = {file.src_uri for file in files}
        text = re.sub(
            r"\]\((?!https?://|#)([^)#]+)(#[^)]*)?\)",
            lambda m: m.group() if m.group(1) in there else f"]({base}/{m.group(1)}{m.group(2) or ''})",
            text,
        )
    return text


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
