"""Writes docs/api.md: every public name by unit, with its signature and what it is in a sentence.

    python docs/site/make_api.py

Public is what a unit lists in its `__all__`. tests/test_api.py holds the page against the code.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import is_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "api.md"
UNITS = ("store", "probe", "analysis", "causal", "results", "report", "datasets", "extract", "errors")

HEAD = """# Python names

All that a script or a notebook may rely on, by unit; each unit's page, on the built site, and `help` in Python say
shapes, units and what is raised.
`import stratascope as ss` gives the units by name, each loaded when it is first used, and `ss.ActivationStore`; it loads neither torch nor
scikit-learn, Dask or matplotlib. What is not listed here is private and may change. This page is made by `docs/site/make_api.py`.
"""


def public_names(unit: Any) -> list[str]:
    """What a unit lists."""
    return list(unit.__all__)


def first_sentence(thing: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def signature(name: str, thing: Any) -> str:
    """Name and parameters without their types, and what comes back where that is one word."""
    try:
        found = inspect.signature(thing)
    except (ValueError, TypeError):
        return name
    plain = [p.replace(annotation=p.empty, default=_shown(p.default)) for p in found.parameters.values() if p.name not in ("self", "cls")]
    back = found.return_annotation if isinstance(found.return_annotation, str) and found.return_annotation.isidentifier() else None
    text = f"{name}{found.replace(parameters=plain, return_annotation=found.empty)}"
    return f"{text} -> {back}" if back not in (None, "None") and not inspect.isclass(thing) else text


class _Default:
    """A default value that is shown as it would be typed."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _shown(default: Any) -> Any:
    """Settings that have all their own defaults as `Settings()`; sets in order."""
    if isinstance(default, frozenset):
        return _Default(f"frozenset({sorted(default)})")
    if inspect.isfunction(default):
        return _Default(default.__name__ if default.__name__ != "<lambda>" else "...")
    own = is_dataclass(default) and not isinstance(default, type)
    return _Default(f"{type(default).__name__}()") if own and default == type(default)() else default


def members(kind: type) -> list[tuple[str, Any]]:
    """Methods and properties that a class itself defines, in their order."""
    found = []
    for name, member in vars(kind).items():
        if not name.startswith("_") and (callable(member) or isinstance(member, classmethod | staticmethod | property)):
            found.append((name, member))
        elif not name.startswith("_") and hasattr(member, "attrname"):  # a cached property
            found.append((name, member.func if hasattr(member, "func") else member))
    return found


def said_of_constant(unit: Any, name: str) -> str:
    """The text that stands under a constant's definition, wherever in the unit that is."""
    for path in sorted(Path(unit.__file__).parent.rglob("*.py")):
        body = ast.parse(path.read_text("utf-8")).body
        for statement, after in pairwise(body):
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                text = after.value if isinstance(after, ast.Expr) else None
                return " ".join(str(text.value).split()) if isinstance(text, ast.Constant) else ""
    return ""


def entry(unit: Any, name: str, thing: Any) -> list[str]:
    """The lines of one public name, a class with its methods."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return [f"- `{name}`: {said_of_constant(unit, name)}"]
    shown = name if inspect.isclass(thing) and issubclass(thing, BaseException) else signature(name, thing)
    lines = [f"- `{shown}`: {first_sentence(thing)}"]
    if inspect.isclass(thing):
        for own, member in members(thing):
            is_plain = isinstance(vars(thing)[own], property) or hasattr(vars(thing)[own], "attrname")
            text = f".{own}" if is_plain else signature(f".{own}", getattr(thing, own))
            lines.append(f"    - `{text}`: {first_sentence(member)}")
    return lines


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name in UNITS:
        unit = import_module(f"stratascope.{name}")
        lines = [line for public in public_names(unit) for line in entry(unit, public, getattr(unit, public))]
        parts.append(f"## [stratascope.{name}](api/{name}.md)\n\n{first_sentence(unit)}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


BEGIN, END = "<!-- names: made by docs/site/make_api.py -->", "<!-- end of names -->"


def unit_page(name: str) -> str:
    """A unit's page, its list of names made anew before what the site puts in."""
    text = (PAGE.parent / "api" / f"{name}.md").read_text("utf-8")
    before, _, rest = text.partition(BEGIN) if BEGIN in text else (text.partition(":::")[0], "", "")
    after = rest.partition(END)[2].lstrip() if rest else text[len(before) :]
    unit = import_module(f"stratascope.{name}")
    names = [f"- {entry(unit, public, getattr(unit, public))[0][2:]}" for public in public_names(unit)]
    example = f"help(stratascope.{name}.{public_names(unit)[0]})"
    said = f"Parameters, shapes, units and what is raised: below on the built site (`mkdocs serve`), and by `{example}` in Python."
    return f"{before}{BEGIN}\n{said}\n\n" + "\n".join(names) + f"\n{END}\n\n{after}"


if __name__ == "__main__":
    for unit_name in UNITS:
        (PAGE.parent / "api" / f"{unit_name}.md").write_text(unit_page(unit_name), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
