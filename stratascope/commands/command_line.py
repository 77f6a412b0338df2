"""Commands as text: the options of a result in terms of the command that computes it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from stratascope.commands.bucket_outputs import TEXT_ONLY
from stratascope.store.io.selection import stretches


class CommandLines:
    """Writes commands with the options that differ from their defaults; see `report.blocks.CommandLine`.

    Parameters
    ----------
    command_of
        Returns a command by its name.
    """

    def __init__(self, command_of: Callable[[str], click.Command]) -> None:
        self._command_of = command_of

    def accepts(self, command: str) -> frozenset[str]:
        """Names of the command's parameters."""
        return frozenset(str(parameter.name) for parameter in self._command_of(command).params)

    def __call__(self, command: str, store: str, options: Mapping[str, Any]) -> str:
        """`stratascope COMMAND STORE` with every option that differs from the command's default.

        Parameters
        ----------
        command
            Name of the command.
        store
            Its first argument; empty for a command without one.
        options
            Parameter -> value; names that the command lacks are ignored.
        """
        words = ["stratascope", command, *([store] if store else [])]
        found = self._command_of(command)
        with click.Context(found, info_name=command) as context:
            context.meta[TEXT_ONLY] = True
            for parameter in found.params:
                if parameter.name in options and not _is_default(context, parameter, options[parameter.name]):
                    words += _words(context, parameter, options[parameter.name])
        return shlex.join(words)


def _plain(value: Any) -> Any:
    """A value for comparison: sequences as tuples, None for what is empty."""
    if isinstance(value, list | tuple):
        return tuple(_plain(one) for one in value) or None
    return None if value is False or value == "" else value


def _is_default(context: click.Context, parameter: click.Parameter, value: Any) -> bool:
    plain = _plain(value)
    if plain is None:
        return True
    default = parameter.get_default(context)
    return default is not None and plain == _plain(_parsed(context, parameter, default))


def _parsed(context: click.Context, parameter: click.Parameter, text: Any) -> Any:
    """The value that the command receives for a text; None for a text that it refuses."""
    try:
        return parameter.process_value(context, text)
    except click.UsageError:
        return None


def _words(context: click.Context, parameter: click.Parameter, value: Any) -> list[str]:
    if isinstance(parameter, click.Argument):
        return [str(value)]
    name = max(parameter.opts, key=len)
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return [name]
    if parameter.multiple:
        return [word for one in value for word in (name, str(one))]
    texts = list(_texts(value))
    fitting = [text for text in texts if _plain(_parsed(context, parameter, text)) == _plain(value)]
    return [name, min(fitting, key=len) if fitting else texts[0]]


def _texts(value: Any) -> Iterator[str]:
    """Ways to write a value: comma-separated, as ranges of numbers, as the first and last number of a half-open range."""
    if not isinstance(value, list | tuple):
        yield str(value)
        return
    whole = all(isinstance(one, int) for one in value)
    yield ",".join(map(str, value))
    if whole and list(value) == sorted(set(value)):
        yield ",".join(stretches(list(value), "-"))
    if whole and len(value) == 2:
        yield f"{value[0]}-{value[1] - 1}"


def command_lines() -> CommandLines:
    """The commands of the program that is running."""
    root = click.get_current_context().find_root()

    def command_of(name: str) -> click.Command:
        found = root.command.get_command(root, name) if isinstance(root.command, click.Group) else None
        assert found is not None, f"a result names the command {name!r}"
        return found

    return CommandLines(command_of)
