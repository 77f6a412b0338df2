"""Options of the command line from the parameters of a function or the fields of a settings class: defaults are written there, once."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import click

from stratascope.commands import options as parsers

CALLBACKS: Mapping[Any, Callable[..., Any]] = {
    tuple[str, ...]: parsers.names,
    tuple[int, ...]: parsers.numbers,
    Sequence[int]: parsers.numbers,
    tuple[float, ...]: parsers.decimals,
}


def options_of(function: Callable[..., Any], /, **help_texts: str | click.Option | Callable[..., Any]) -> Callable[[Any], Any]:
    """A decorator that adds one option for each named parameter, with the parameter's type and default.

    Parameters
    ----------
    function
        A function or a dataclass. `Literal` becomes a choice, `bool` a flag, `tuple[str, ...]` comma-separated names.
    help_texts
        Parameter -> help text, in the order in which `--help` lists them.

    Examples
    --------
    >>> def scale(factor: float = 2.0, unit: Literal["mm", "cm"] = "mm"): ...
    >>> command = click.command()(options_of(scale, factor="Factor of the lengths.", unit="Unit.")(lambda **chosen: None))
    >>> [(p.name, p.default) for p in command.params]
    [('factor', 2.0), ('unit', 'mm')]
    """
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters

    def decorate(command: Any) -> Any:
        for name, text in reversed(help_texts.items()):
            command = _option(name, hints[name], parameters[name].default, str(text))(command)
        return command

    return decorate


def default_of(function: Callable[..., Any], name: str) -> Any:
    """The default of a parameter."""
    return inspect.signature(function).parameters[name].default


def _option(name: str, hint: Any, default: Any, text: str) -> Any:
    flag = f"--{name.replace('_', '-')}"
    inner = [one for one in get_args(hint) if one is not type(None)] if isinstance(hint, types.UnionType) else [hint]
    hint = inner[0]
    given: dict[str, Any] = {"help": text, "default": default, "show_default": default not in (None, (), "", False)}
    if hint is bool:
        return click.option(flag, is_flag=True, help=text)
    if get_origin(hint) is Literal:
        return click.option(flag, type=click.Choice(get_args(hint)), **given)
    if hint in CALLBACKS:
        shown = ",".join(map(str, default)) if default else None
        return click.option(flag, callback=CALLBACKS[hint], metavar="A,B", **{**given, "default": shown})
    if hint is int:
        return click.option(flag, type=click.IntRange(min=0), **given)
    return click.option(flag, type=hint, **given)
