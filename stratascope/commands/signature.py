"""Command-line options from the parameters of a function or the fields of a settings class, where defaults are written once."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import click

from stratascope.commands import options as parsers

CALLBACKS: Mapping[Any, Callable[..., Any]] = {
    tuple[str, ...]: parsers.names,
    tuple[int, ...]: parsers.numbers,
    tuple[float, ...]: parsers.decimals,
    Sequence[str]: parsers.names,
    Sequence[int]: parsers.numbers,
}


def options_of(function: Callable[..., Any], /, **help_texts: str) -> Callable[[Any], Any]:
    """Decorator that adds an option for each named parameter, with its type and default.

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
    named = types.SimpleNamespace(__annotations__={name: inspect.get_annotations(function)[name] for name in help_texts})
    hints = typing.get_type_hints(named, vars(sys.modules[function.__module__]))
    parameters = inspect.signature(function).parameters

    def decorate(command: Any) -> Any:
        for name, text in reversed(help_texts.items()):
            command = _option(name, hints[name], parameters[name].default, text)(command)
        return command

    return decorate


def default_of(function: Callable[..., Any], name: str) -> Any:
    """The default of a parameter."""
    return inspect.signature(function).parameters[name].default


def _option(name: str, hint: Any, default: Any, text: str) -> Any:
    flag = f"--{name.replace('_', '-')}"
    inner = [one for one in get_args(hint) if one is not type(None)] if isinstance(hint, types.UnionType) else [hint]
    hint = inner[0]
    given: dict[str, Any] = {"help": text, "default": default, "show_default": default not in (None, (), "") and default is not False}
    if hint is bool:
        return click.option(flag, is_flag=True, help=text)
    if get_origin(hint) is Literal:
        return click.option(flag, type=click.Choice(get_args(hint)), **given)
    if (callback := CALLBACKS.get(hint)) is not None:
        shown = ",".join(map(str, default)) if default else None
        return click.option(
            flag, callback=callback, metavar="N,M-K" if callback is parsers.numbers else "A,B", **{**given, "default": shown}
        )
    if hint is int:
        return click.option(flag, type=click.IntRange(min=0), **given)
    return click.option(flag, type=hint, **given)
