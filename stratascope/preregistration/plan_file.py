"""Read the plan of a study from a TOML file or a built-in one; unknown keys are refused with the nearest known one."""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from stratascope.errors import InvalidInputError
from stratascope.preregistration.study_plan import StudyPlan, nearest

T = TypeVar("T")


def presets() -> dict[str, str]:
    """Name -> text of each built-in plan."""
    folder = files("stratascope.preregistration") / "presets"
    return {one.name.removesuffix(".toml"): one.read_text("utf-8") for one in sorted(folder.iterdir(), key=lambda one: one.name)}


def read_plan(source: str | Path) -> StudyPlan:
    """Read a plan.

    Parameters
    ----------
    source
        A TOML file, or the name of a built-in plan, such as `relation`.

    Raises
    ------
    InvalidInputError
        The file is missing, is no TOML, has an unknown key or another type, or the plan contradicts itself.

    Examples
    --------
    >>> read_plan("relation").primary.task
    'relation'
    """
    built_in = presets()
    if str(source) in built_in and not Path(source).exists():
        return parse_plan(built_in[str(source)], str(source))
    try:
        text = Path(source).read_text("utf-8-sig")  # some editors begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"expected a plan file in TOML or a preset among {', '.join(built_in)}, found {str(source)!r}: "
            f"{getattr(error, 'strerror', None) or 'not in UTF-8'}"
        ) from error
    return parse_plan(text, str(source))


def parse_plan(text: str, name: str = "plan") -> StudyPlan:
    """Parse the `text` of a plan; `name` is that of the file in messages; InvalidInputError as of `read_plan`."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(f"{name}: expected TOML, found: {error}") from error
    try:
        plan = _record(StudyPlan, {key: value for key, value in found.items() if key != "text"} | {"text": text}, "")
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error.message}") from error
    assert isinstance(plan, StudyPlan)
    return plan


def _record(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """A dataclass from a TOML table; `where` is the table's name in messages."""
    hints = typing.get_type_hints(kind)
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    shown = f"[{where}]: " if where else ""
    for key in table:
        if key not in known:
            names = [name for name in known if name != "text"]
            raise InvalidInputError(f"{shown}expected keys among {', '.join(names)}, found {key!r}{nearest(key, names)}")
    lacking = [name for name, one in known.items() if name not in table and one.default is MISSING and one.default_factory is MISSING]
    if lacking:
        raise InvalidInputError(f"{shown}expected {', '.join(lacking)}, found {', '.join(k for k in table if k != 'text') or 'nothing'}")
    try:
        return kind(**{key: _value(hints[key], value, f"{where}.{key}" if where else key) for key, value in table.items()})
    except InvalidInputError as error:
        inner = error.message.startswith("[") or not where
        raise error if inner else InvalidInputError(f"{shown}{error.message}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """A TOML value as the type of a field."""
    choices = [one for one in get_args(hint) if one is not type(None)] if type(None) in get_args(hint) else [hint]
    hint, name = choices[0], where.strip("[]").rpartition(".")[2]
    if is_dataclass(hint) and isinstance(value, dict):
        return _record(hint, value, where)  # type: ignore[arg-type]
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_value(get_args(hint)[0], one, f"[{where}]" if isinstance(one, dict) else where) for one in value)
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise InvalidInputError(f"expected '{name}' among {', '.join(get_args(hint))}, found {value!r}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise InvalidInputError(f"expected '{name}' as {_named(hint)}, found {value!r}")


def _named(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"a list of {'tables' if is_dataclass(get_args(hint)[0]) else _named(get_args(hint)[0]).removeprefix('a ') + 's'}"
    return "a table" if is_dataclass(hint) else {str: "a text", int: "an integer", float: "a number"}.get(hint, str(hint))
