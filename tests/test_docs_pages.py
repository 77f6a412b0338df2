"""The documentation says what is true: examples print what stands there, links lead somewhere, the notebook runs."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from stratascope.cli import all_commands

ROOT = Path(__file__).resolve().parents[1]


def load(name: str, folder: str = "site") -> ModuleType:
    """A script of a folder of docs as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = load("make_commands")
CHANGES = re.compile(r"created|written|libraries|hardware|host|command|digest|fingerprint|\b[0-9a-f]{12,}\b|\d\d:\d\d:\d\d|\bs\b.*block")
"""Lines that differ between two machines or two days."""


def words_and_numbers(text: str) -> tuple[list[str], list[float]]:
    """A text without numbers, and its numbers; runs of blanks and of dashes are one."""
    lines = [line for line in text.splitlines() if not CHANGES.search(line)]
    joined = "\n".join(lines).replace(",", "")
    numbers = [float(n) for n in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]\d+)?", joined)]
    return re.sub(r"[+-]?(?<![\w.])\d+(?:\.\d+)?(?:e[+-]\d+)?", "#", joined).split(), numbers


def test_every_command_stands_in_the_documentation_with_the_example_of_its_help() -> None:
    held = MADE.stored()
    assert list(held) == [str(command.name) for command in all_commands().values()], "run python docs/site/make_commands.py"
    for name, (example, output) in held.items():
        assert example == MADE.example_of(name), "run python docs/site/make_commands.py"
        assert output or name in MADE.NOT_RUN


EXAMPLES = [str(command.name) for command in all_commands().values() if command.name not in (*MADE.NOT_RUN, *MADE.SLOW)]
"""Commands whose example is run."""
CHECKS = {"diff", "verify"}
"""Commands that may end with 1: what they were asked about is so."""


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_each_command_still_prints_what_the_documentation_says(name: str, working: Path) -> None:
    example, output = MADE.stored()[name]
    code, fresh = MADE.run_example(example)
    assert code in ((0, 1) if name in CHECKS else (0,)), fresh
    said, found = words_and_numbers(output), words_and_numbers(MADE.shortened(fresh))
    assert found[0] == said[0], "run python docs/site/make_commands.py"
    assert found[1] == pytest.approx(said[1], rel=0.05, abs=0.05)


@pytest.fixture(scope="module")
def working(demo: Path):
    """A working folder with the demo in it."""
    with MADE.folder_with(demo) as folder:
        yield folder


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))))
def test_links_within_the_repository_lead_to_files(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.S)
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


@pytest.mark.slow
def test_the_notebook_runs_from_opening_a_store_to_a_probe_of_ones_own(working: Path) -> None:
    tour = load("make_tour")
    stored = json.loads(tour.NOTEBOOK.read_text("utf-8"))
    assert [(c["cell_type"], "".join(c["source"])) for c in stored["cells"]] == [
        (kind, text if number else tour.badge() + text) for number, (kind, text) in enumerate(tour.CELLS)
    ], "run python docs/site/make_tour.py DEMO"
    fresh = tour.notebook()
    shown = 0
    for cell, again in zip(stored["cells"], fresh["cells"], strict=True):
        for output, now in zip(cell.get("outputs", []), again.get("outputs", []), strict=True):
            assert set(output["data"]) == set(now["data"])
            said, found = (words_and_numbers("".join(o["data"]["text/plain"])) for o in (output, now))
            assert found[0] == said[0], "".join(cell["source"])
            assert found[1] == pytest.approx(said[1], rel=0.05, abs=0.05), "".join(cell["source"])
            shown += 1
    assert shown > 8
    assert sum(cell["cell_type"] == "code" for cell in stored["cells"]) <= 24


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="NO MKDOCS HERE: that the documentation builds was NOT checked; pip install '.[docs]'")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for page in ("index.html", "commands/index.html", "tour/index.html", "api/probe/index.html"):
        assert (tmp_path / "site" / page).stat().st_size > 10_000


def unknown_options(text: str) -> tuple[list[str], list[str]]:
    """The commands that a text names, and those with options that do not exist."""
    named = [words for words in re.findall(r"`(stratascope [^`]+)`", text) if " COMMAND" not in words]
    commands = all_commands()
    known = {words: {option for param in commands[words.split()[1]].params for option in param.opts} for words in named}
    return named, [words for words in named if set(re.findall(r"--[\w-]+", words)) - known[words]]


def test_the_page_of_questions_names_commands_and_options_that_exist() -> None:
    named, unknown = unknown_options((ROOT / "docs" / "questions.md").read_text("utf-8"))
    assert len(named) > 25
    assert not unknown
    lacking = set(all_commands()) - {words.split()[1] for words in named}
    assert lacking <= {
        "demo",
        "fetch",
        "convert",
        "import",
        "pairs",
        "extract",
        "info",
        "copy",
        "push",
        "pull",
        "report",
    }


def test_each_method_has_a_page_with_its_command_equation_cost_and_limits() -> None:
    index, pages = (ROOT / "docs" / "methods.md").read_text("utf-8"), sorted((ROOT / "docs" / "methods").glob("*.md"))
    linked = re.findall(r"\]\(methods/([\w-]+\.md)\)", index)
    assert sorted(linked) == [page.name for page in pages]
    told = set()
    for page in pages:
        text = page.read_text("utf-8")
        rows = dict(re.findall(r"^\| ([\w ]+) \| (.+) \|$", text, re.M))
        facts = ("question", "command", "equation", "record", "source", "cost", "misleads when", "interval")
        assert all(rows.get(fact) for fact in facts), page.name
        assert f"| {rows['question']} |" in index, page.name
        named, unknown = unknown_options(text)
        assert named
        assert not unknown
        told |= {words.split()[1] for words in re.findall(r"`(stratascope [^`]+)`", rows["command"])}
    methods = (
        "answers share rollout flow overlap heads faithfulness pointing attribution knockouts lens probe patches entanglement pca intervene"
    )
    assert told >= set(methods.split())


def test_each_method_of_the_comparison_is_on_a_page() -> None:
    from stratascope.analysis.relevance import METHODS

    text = "".join(page.read_text("utf-8") for page in (ROOT / "docs" / "methods").glob("*.md")).lower()
    assert not [method.label for method in METHODS if method.label.partition(",")[0] not in text]


def test_links_to_sections_lead_to_headings_or_anchors() -> None:
    pytest.importorskip("mkdocs")
    from markdown import markdown

    def anchors(page: Path) -> set[str]:
        return set(re.findall(r' id="([^"]+)"', markdown(page.read_text("utf-8"), extensions=["toc", "fenced_code", "tables"])))

    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/methods/*.md")]
    links = {
        (page, *link) for page in pages for link in re.findall(r"\]\((?!https?://)([^)#\s]*\.md)?#([^)\s]+)\)", page.read_text("utf-8"))
    }
    found: dict[Path, set[str]] = {}
    for page, target, anchor in links:
        there = (page.parent / target).resolve() if target else page
        if there.parent.name != "api" and anchor not in found.setdefault(there, anchors(there)):
            raise AssertionError(f"{page.name} links to {target}#{anchor}")


def test_every_picture_of_the_documentation_is_drawn_by_a_script_there() -> None:
    images = ROOT / "docs" / "images"
    scripts = "".join(path.read_text("utf-8") for path in images.glob("*.py"))
    pictures = {path.name for path in images.glob("*.png")}
    assert pictures
    assert not {name for name in pictures if f'"{name}"' not in scripts and f"docs/images/{name}`" not in scripts}
    shown = {
        name
        for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"))
        for name in re.findall(r"images/([\w-]+\.png)\)", page.read_text("utf-8"))
    }
    assert shown == pictures


def test_the_commands_of_the_scripts_of_figures_exist() -> None:
    for lines in load("make_findings", "images").FIGURES.values():
        for line in lines[:-1]:
            name, *rest = line.format(demo="demo", work="work").split()
            all_commands()[name].make_context(name, rest, resilient_parsing=False)


REPOSITORY = load("repository")


def test_links_lead_to_the_repository_or_are_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    page = "![a [b]](docs/images/x.png) [doc](docs/y.md#z) [up](../training/README.md) [out](https://e.org) [here](#there)"
    assert REPOSITORY.absolute_links(page, "https://e.org/r", "docs") == (
        "![a [b]](https://e.org/r/raw/main/docs/docs/images/x.png) [doc](https://e.org/r/blob/main/docs/docs/y.md#z) "
        "[up](https://e.org/r/blob/main/training/README.md) [out](https://e.org) [here](#there)"
    )
    assert REPOSITORY.absolute_links(page, "") == " doc up [out](https://e.org) [here](#there)"
    monkeypatch.setenv(REPOSITORY.VARIABLE, "https://e.org/r/")
    assert REPOSITORY.repository_url() == "https://e.org/r"
    readme = REPOSITORY.absolute_links((ROOT / "README.md").read_text("utf-8"), "https://e.org/r")
    targets = re.findall(r"\]\(([^)]+)\)", readme)
    assert targets
    assert all(target.startswith(("https://", "#")) for target in targets)
