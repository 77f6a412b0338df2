"""What is written of the code keeps up with it: docstrings say what they must, long modules say why, and nothing public lies unused.

The rules are read from the source alone; `docs/architecture.md` and CONTRIBUTING.md state them for people.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import stratascope

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "stratascope"
UNITS = [name for name in stratascope.__all__ if name.islower()]
LONG = 350
OBVIOUS = {"self", "cls", "store", "path", "ax", "progress", "scheduler"}
"""Parameters that mean the same everywhere."""

ARRAY = re.compile(r"\bNDArray\b|\bFloats\b|\bndarray\b")
SHAPE = re.compile(r"\((?:\.\.\.|[a-z\d][\w .+*/'-]*)[,)]|shape")
ELSEWHERE = re.compile(r"[Pp]arameters\b[^\n]*\bof\b|[Aa]s (?:of )?`")
"""Words by which a docstring sends its reader to another one."""


@dataclass(frozen=True)
class Defined:
    """A public function, class or method."""

    where: str
    name: str
    node: ast.FunctionDef | ast.ClassDef
    owner: ast.ClassDef | None
    listed: bool

    @property
    def doc(self) -> str:
        return ast.get_docstring(self.node) or ""

    def __str__(self) -> str:
        return f"{self.where}:{self.node.lineno} {self.name}"


@cache
def trees() -> dict[str, ast.Module]:
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def defined() -> tuple[Defined, ...]:
    listed = {(unit, name) for unit in UNITS for name in import_module(f"stratascope.{unit}").__all__}
    found = []
    for where, tree in trees().items():
        unit = unit_of(where)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                public = (unit, node.name) in listed
                found.append(Defined(where, node.name, node, None, public))
                members = node.body if isinstance(node, ast.ClassDef) else []
                for member in members:
                    if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                        assert isinstance(node, ast.ClassDef)
                        found.append(Defined(where, f"{node.name}.{member.name}", member, node, public))
    return tuple(found)


def parameters(function: ast.FunctionDef) -> Iterator[ast.arg]:
    given = function.args
    yield from (*given.posonlyargs, *given.args, *given.kwonlyargs)


def raised(node: ast.AST) -> Iterator[str]:
    """Names of what a function raises itself, not in functions within it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(child, ast.Raise) and child.exc is not None:
            kind = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
            if isinstance(kind, ast.Name):
                yield kind.id
        yield from raised(child)


@pytest.mark.slow
def test_everything_public_has_a_docstring() -> None:
    # what a base class has said already need not be said again
    silent = [str(d) for d in defined() if not d.doc and not (d.owner is not None and d.owner.bases)]
    assert not silent


def test_docstrings_name_every_error_that_is_raised_there() -> None:
    known = set(stratascope.errors.__all__)
    functions = [d for d in defined() if isinstance(d.node, ast.FunctionDef) and not d.where.startswith("commands/")]
    lacking = {str(d): missing for d in functions if (missing := sorted({name for name in raised(d.node) if name in known} - words(d)))}
    assert not lacking


def words(found: Defined) -> set[str]:
    return set(re.findall(r"\w+", found.doc))


def test_docstrings_of_listed_names_say_what_each_parameter_is() -> None:
    functions = [(d, d.node) for d in defined() if d.listed and d.doc and isinstance(d.node, ast.FunctionDef)]
    assert len(functions) > 150
    lacking = {}
    for found, node in functions:
        names = {arg.arg for arg in parameters(node)} - OBVIOUS
        if not ELSEWHERE.search(found.doc) and names - words(found):
            lacking[str(found)] = sorted(names - words(found))
    assert not lacking


def test_docstrings_of_listed_names_say_the_shapes_of_arrays() -> None:
    lacking = []
    for found in defined():
        if found.listed and found.doc and isinstance(found.node, ast.FunctionDef):
            # examples are chosen by numbers or a mask everywhere
            types = [arg.annotation for arg in parameters(found.node) if arg.arg != "examples"]
            arrays = any(kind is not None and ARRAY.search(ast.unparse(kind)) for kind in (*types, found.node.returns))
            if arrays and not (SHAPE.search(found.doc) or ELSEWHERE.search(found.doc)):
                lacking.append(str(found))
    assert not lacking


def test_sections_of_docstrings_are_those_of_numpydoc() -> None:
    """An item is a name on a line of its own, and below it, indented, what it is; nothing stands where a type would."""
    wrong = []
    for found in defined():
        for section in re.findall(r"^(?:Parameters|Returns|Raises|Attributes)\n-+\n((?:.*\n?)*?)(?=^\S[\w ]*\n-+\n|\Z)", found.doc, re.M):
            heads = [line for line in section.splitlines() if line.strip() and not line.startswith(" ")]
            bodies = [line for line in section.splitlines() if line.startswith("    ")]
            if not bodies or any(" : " in head or head.endswith(".") for head in heads):
                wrong.append(f"{found}: {heads}")
    assert not wrong


@pytest.mark.parametrize("folder", ["stratascope", "benchmarks", "training", "docs"])
def test_long_modules_say_why_at_their_top(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text("utf-8")
        if text.count("\n") > LONG:
            why = ast.get_docstring(ast.parse(text)) or ""
            assert re.search(r"\bone (?:file|module)\b", why), (
                f"{path.relative_to(ROOT)}: over {LONG} lines; look for the seam, or say why it is one file"
            )


def mentions(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.alias):
            yield part.name.rpartition(".")[2]


def test_nothing_public_lies_unused() -> None:
    """Every public function, class and method is used in the package beyond itself, listed, typed in the documentation, or a command."""
    counts: dict[str, int] = {}
    makers = [ast.parse(path.read_text("utf-8")) for path in (ROOT / "docs" / "site").glob("*.py")]
    for tree in (*trees().values(), *makers):
        for name in mentions(tree):
            counts[name] = counts.get(name, 0) + 1
    # templates of pages call methods, too
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").glob("*.ipynb"), *PACKAGE.rglob("shell/*.html")]
    typed = set(re.findall(r"\w+", "\n".join(page.read_text("utf-8") for page in pages if page.name != "api.md")))
    unused = []
    for found in defined():
        name = found.name.rpartition(".")[2]
        own = sum(part == name for part in mentions(found.node))
        called_by_others = found.owner is not None and bool(found.owner.bases)
        if not (found.listed or found.node.decorator_list or called_by_others or name in typed or counts.get(name, 0) > own):
            unused.append(str(found))
    assert not unused


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def rows_of(text: str, head: str) -> list[list[str]]:
    """Cells of the first table whose head begins so."""
    lines = text[text.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def quoted(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def unit_of(where: str) -> str:
    return where.split("/")[0].removesuffix(".py")


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stratascope."):
            yield str(node.module).split(".")[1]


def test_the_page_of_the_house_says_who_imports_whom() -> None:
    rows = rows_of(page("architecture.md"), "unit")
    order = [quoted(cells[0]) for cells in rows]
    assert set().union(*order) == {unit_of(where) for where in trees()} - {"__init__", "__main__"}
    for k, (units, _, may) in enumerate(rows):
        allowed = set().union(*order[k + 1 :]) if may == "everything below" else quoted(may)
        used = {unit for where, tree in trees().items() if unit_of(where) in quoted(units) for unit in imported(tree)}
        assert used - quoted(units) <= allowed, units


def test_the_page_of_the_house_names_every_part_of_the_larger_units_and_the_words_in_use() -> None:
    from stratascope.extract.plan.images import CONDITIONS
    from stratascope.extract.plan.settings import POSITIONS
    from stratascope.extract.plan.token_layout import SPANS

    named = {cells[0].strip("`") for cells in rows_of(page("architecture.md"), "folder")}
    units = ("extract", "probe", "store")
    assert named == {f"{unit}/{path.parent.name}" for unit in units for path in (PACKAGE / unit).glob("*/__init__.py")}
    words = {cells[0]: cells[1] for cells in rows_of(page("architecture.md"), "word")}
    assert set(SPANS) <= quoted(words["span"])
    assert quoted(words["position"]) == set(POSITIONS)
    assert set(re.findall(r"`([\w-]+)`", words["condition"])) == set(CONDITIONS)


def test_the_page_of_the_format_lists_every_array_as_it_is_written() -> None:
    from stratascope.store.format.arrays import TABLE

    listed: dict[str, list[str]] = {}
    for cells in rows_of(page("format.md"), "array"):
        for name in re.findall(r"`(\w+)`", cells[0]):
            listed[name] = cells
    for kind in TABLE:
        _, dims, values, *_, codec, when = listed.pop(kind.name)
        assert dims in (", ".join(kind.dims), "each its own"), kind.name
        assert values.split(", ")[0] == kind.dtype.replace("str", "text"), kind.name
        assert codec == kind.codec, kind.name
        assert when.endswith({"creation": "at creation", "marker": "last, by block"}.get(kind.when, "by block")), kind.name
    assert not listed


def test_the_page_of_results_has_a_section_for_every_kind() -> None:
    from stratascope.results import result_kinds

    assert set(result_kinds()) == set(re.findall(r"^## (\w+)$", page("results.md"), re.M))
