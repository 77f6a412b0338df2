"""What is public: listed by its unit, in the page of all names and in the documentation's site; nothing else is promised anywhere."""

from __future__ import annotations

import importlib.util
import json
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import stratascope

ROOT = Path(__file__).parents[1]
UNITS = [name for name in stratascope.__all__ if name.islower()]


BELOW = {"report": ("results", "figures"), "probe": ("results", "preregistration"), "analysis": ("results",), "store": ("results",)}
"""Unit -> units without a page of their own whose names it lists."""


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "site" / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_page_of_names_is_that_of_the_code() -> None:
    made = maker()
    assert sorted(made.UNITS) == sorted(UNITS)
    assert made.page() == made.PAGE.read_text("utf-8"), "run python docs/site/make_api.py"
    for unit in UNITS:
        assert made.unit_page(unit) == (ROOT / "docs" / "api" / f"{unit}.md").read_text("utf-8"), "run python docs/site/make_api.py"


@pytest.mark.parametrize("unit", UNITS)
def test_every_listed_name_is_there_and_has_a_page(unit: str) -> None:
    module = import_module(f"stratascope.{unit}")
    for name in module.__all__:
        thing = getattr(module, name)
        assert not name.startswith("_")
        owner = getattr(thing, "__module__", f"stratascope.{unit}").split(".")[1]
        assert owner in {unit, *BELOW.get(unit, ())}, f"{name} is of another unit"
    assert len(set(module.__all__)) == len(module.__all__)
    assert f"::: stratascope.{unit}" in (ROOT / "docs" / "api" / f"{unit}.md").read_text("utf-8")


def texts() -> dict[str, str]:
    """The documentation's pages, and the code of the notebook."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    found = {page.name: page.read_text("utf-8") for page in pages}
    tour = json.loads((ROOT / "docs" / "tour.ipynb").read_text("utf-8"))
    return found | {"tour.ipynb": "\n".join("".join(cell["source"]) for cell in tour["cells"])}


def test_names_that_the_documentation_types_are_public() -> None:
    typed = 0
    for page, text in texts().items():
        for unit, name in re.findall(rf"\b(?:ss|stratascope)\.({'|'.join(UNITS)})\.(\w+)", text):
            assert name in import_module(f"stratascope.{unit}").__all__, f"{page}: {unit}.{name}"
            typed += 1
        for unit, names in re.findall(rf"from stratascope\.({'|'.join(UNITS)}) import (.+)", text):
            assert set(re.findall(r"\w+", names)) <= set(import_module(f"stratascope.{unit}").__all__), f"{page}: {names}"
        assert not re.findall(r"\bstratascope\.workflow\b", text), f"{page} names what is private"
    assert typed > 8
