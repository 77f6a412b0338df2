"""The page's sources: what is committed is what they build, they pass their own tests, and their fixtures are what Python says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

from stratascope.report.viewer import PAGE_FILES
from stratascope.report.viewer.page_files import page_file
from tests.viewer.make_fixtures import TARGET, fixtures

SOURCES = Path(__file__).parents[2] / "viewer"


@pytest.fixture(scope="module")
def node():
    """The folder of the sources, with Node and their packages at hand."""
    missing = "the viewer's sources were not built anew: install Node 20 or later and run `npm ci` in viewer/"
    if shutil.which("node") is None or not (SOURCES / "node_modules" / "esbuild").exists():
        warnings.warn(missing, stacklevel=2)
        pytest.skip(missing)
    return SOURCES


def run(folder, *command):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_the_committed_page_is_what_the_sources_build(node, tmp_path):
    run(node, "node", "build.mjs", "--out", str(tmp_path))
    assert {p.name for p in tmp_path.iterdir()} == set(PAGE_FILES)
    for name in PAGE_FILES:
        assert (tmp_path / name).read_bytes() == page_file(name), f"{name}: run `npm run build` in viewer/ and commit what it writes"


@pytest.mark.slow
def test_the_sources_types_hold(node):
    run(node, "node", "node_modules/typescript/bin/tsc", "--noEmit")


def test_the_sources_own_tests(node):
    run(node, "node", "build.mjs", "--tests")
    run(node, "node", "--test", "out/")


def test_the_fixtures_are_what_python_says():
    saved, numbers = without_numbers(json.loads(TARGET.read_text(encoding="utf-8")))
    made, again = without_numbers(json.loads(json.dumps(fixtures())))
    assert saved == made
    assert numbers == pytest.approx(again, rel=1e-12, abs=1e-15)  # the last bits are those of the machine's linear algebra


def without_numbers(value):
    """A JSON value with its fractions replaced by one word, and these fractions in order."""
    numbers = []

    def plain(one):
        if isinstance(one, float):
            numbers.append(one)
            return "fraction"
        if isinstance(one, dict):
            return {key: plain(inner) for key, inner in one.items()}
        return [plain(inner) for inner in one] if isinstance(one, list) else one

    return plain(value), numbers


def test_packages_are_pinned_and_the_lock_file_names_no_host():
    packages = json.loads((SOURCES / "package.json").read_text())
    for version in [*packages["dependencies"].values(), *packages["devDependencies"].values()]:
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    lock = (SOURCES / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert "://" not in re.sub(r'"(url|funding)": "[^"]*"', "", lock)
    assert all("integrity" in entry for path, entry in json.loads(lock)["packages"].items() if path)


def test_every_package_in_the_page_has_its_notice():
    notices = page_file("NOTICES.txt").decode()
    for name, version in json.loads((SOURCES / "package.json").read_text())["dependencies"].items():
        assert f"{name} {version}\n" in notices


def test_no_source_makes_markup_or_runs_text():
    for path in (SOURCES / "src").rglob("*.ts"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|\beval\(|new Function|srcdoc", text), path
        assert text.count("\n") <= 300, path
    assert "'unsafe" not in page_file("index.html").decode()
