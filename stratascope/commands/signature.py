"""Command-line options from the parameters of a function or the fields of a settings class, where defaults are written once."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from stratascope.commands import options as parsers
from stratascope.errors import StratascopeError

CALLBACKS: Mapping[Any, Callable[..., Any]] = {
    tuple[str, ...]: parsers.names,
    tuple[int, ...]: parsers.numbers,
    Sequence[int]: parsers.numbers,
    tuple[float, ...]: parsers.decimals,
    Sequence[str]: parsers.names,
}
_QUOTED = re.compile(r"`(\w+)`")
_EXTRACTION = re.compile(r"\bextract (?:again )?with [^;)]*")


def options_of(function: Callable[..., Any], /, **help_texts: str | Mapping[str, Any]) -> Callable[[Any], Any]:
    """Decorator that adds an option for each named parameter, with its type and default.

    Parameters
    ----------
    function
        A function or a dataclass. `Literal` becomes a choice, `bool` a flag, `tuple[str, ...]` comma-separated names, `tuple[Path, ...]`
        an option that may be repeated, `tuple[int, int]` a size WxH. A parameter without default is a required option.
    help_texts
        Parameter -> help text, or keywords of `click.option` with `help` among them, in the order in which `--help` lists them.

    Examples
    --------
    >>> def scale(factor: float = 2.0, unit: Literal["mm", "cm"] = "mm"): ...
    >>> command = click.command()(options_of(scale, factor="Factor of the lengths.", unit="Unit.")(lambda **chosen: None))
    >>> [(p.name, p.default) for p in command.params]
    [('factor', 2.0), ('unit', 'mm')]
    """
    hints = _hints(function, help_texts)
    parameters = inspect.signature(function).parameters

    def decorate(command: Any) -> Any:
        for name, text in reversed(help_texts.items()):
            given = {"help": text} if isinstance(text, str) else text
            command = _option(name, hints[name], parameters[name].default, given)(command)
        return command

    return decorate


def _hints(function: Callable[..., Any], names: Iterable[str]) -> dict[str, Any]:
    """Types of the named parameters; the others may name types that are imported for type checking only."""
    if inspect.isclass(function):
        return typing.get_type_hints(function)
    plain = inspect.unwrap(function)
    chosen = types.SimpleNamespace(__annotations__={name: plain.__annotations__[name] for name in names})
    return typing.get_type_hints(chosen, plain.__globals__)


def default_of(function: Callable[..., Any], name: str) -> Any:
    """The default of a parameter."""
    return inspect.signature(function).parameters[name].default


def _option(name: str, hint: Any, default: Any, keywords: Mapping[str, Any]) -> Any:
    flag = f"--{name.replace('_', '-')}"
    union = get_origin(hint) in (types.UnionType, typing.Union)
    inner = [one for one in get_args(hint) if one is not type(None)] if union else [hint]
    hint = inner[0]
    given: dict[str, Any] = {"default": default, "show_default": default not in (None, (), "") and default is not False}
    if default is inspect.Parameter.empty:
        given = {"required": not union}
    if hint is bool:
        return click.option(flag, **{"is_flag": True, **keywords})
    if get_origin(hint) is Literal:
        given["type"] = click.Choice(get_args(hint))
    elif hint in CALLBACKS:
        numbers = CALLBACKS[hint] is parsers.numbers
        given |= {
            "callback": CALLBACKS[hint],
            "metavar": "N,M-K" if numbers else "A,B",
            "default": ",".join(map(str, default)) if default else None,
        }
    elif hint == tuple[Path, ...]:
        given |= {"multiple": True, "type": click.Path(path_type=Path)}
    elif hint == tuple[int, int]:
        given |= {"callback": parsers.size, "metavar": "WxH"}
        if default:
            given |= {"default": "x".join(map(str, default)), "metavar": "WxH|none" if union else "WxH"}
    else:
        kinds = {int: click.IntRange(min=0), Path: click.Path(path_type=Path)}
        given["type"] = kinds.get(hint, hint)
        if hint is int:
            given["metavar"] = "N"
    return click.option(flag, **{**given, **keywords})


def with_option_names(text: str, command: click.Command | None = None) -> str:
    """Text of the library with parameters in backticks replaced by the options of the command (default: the one that runs).

    Parameters after "extract with" or "extract again with" become the options of `stratascope extract`.

    >>> show = click.Command("show", params=[click.Option(["--max-pixels"])])
    >>> with_option_names("lower `max_pixels`, or extract again with `boxes`", show)
    'lower --max-pixels, or extract again with --boxes'
    """
    text = _EXTRACTION.sub(lambda advice: _QUOTED.sub(_extraction_option, advice[0]), text)
    command = command or click.get_current_context().command
    names = {param.name: max(param.opts, key=len) for param in command.params if isinstance(param, click.Option)}
    return _QUOTED.sub(lambda match: names.get(match[1], match[0]), text)


def _extraction_option(match: re.Match[str]) -> str:
    from stratascope.extract.plan.settings import ExtractionSettings

    return f"--{match[1].replace('_', '-')}" if match[1] in ExtractionSettings.__dataclass_fields__ else match[0]


def options_in_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Errors of a command name its options where the library names parameters in backticks."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except StratascopeError as error:
            error.args = tuple(with_option_names(part) if isinstance(part, str) else part for part in error.args)
            raise

    return wrapped
