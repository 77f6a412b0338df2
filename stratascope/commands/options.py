"""Options of the command line: how their values are read, and those that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from stratascope.addresses import is_address, was_address, without_secrets

MOST_NUMBERS = 1_000_000
"""In a range of the command line."""
_DIGITS = re.compile("[0-9]{1,18}")


class OutputPath(click.Path):
    """A path to write to. An address in a bucket becomes a path on this machine, whose files are sent there; others are refused."""

    def __init__(self, *, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_address(value):
            from stratascope.commands.bucket_outputs import converted

            return converted(value, param, ctx, self, writing=True)
        if was_address(Path(value)):
            self.fail(f"expected a path on this machine, found the address {value}; write it with two slashes", param, ctx)
        return super().convert(value, param, ctx)


class FolderPath(OutputPath):
    """A path to write to on this machine alone."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_address(value):
            shown = without_secrets(str(value))
            self.fail(f"expected a path on this machine, found the address {shown}; to a bucket: stratascope copy", param, ctx)
        return super().convert(value, param, ctx)


class ResultPath(click.Path):
    """A results file or folder to read: a path, or an address in a bucket, from which it is fetched."""

    def __init__(self, *, exists: bool = False, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, exists=exists, file_okay=file_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_address(value):
            from stratascope.commands.bucket_outputs import converted

            value = converted(value, param, ctx, self, writing=False)
        return super().convert(value, param, ctx)


class StoreOrResultPath(ResultPath):
    """A store, or results to read: an address in a bucket that holds no store is one of results, which are fetched."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from stratascope.store.io.remote import service_of
        from stratascope.store.io.store_files import store_exists

        results = is_address(value) and service_of(str(value)) and not store_exists(str(value))
        return str(super().convert(value, param, ctx) if results else value)


class StorePath(OutputPath):
    """A store to write: a path on this machine, or an address in a bucket, which stays text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not is_address(value):
            return super().convert(value, param, ctx)
        from stratascope.errors import InvalidInputError
        from stratascope.store.io.remote import refuse_unwritable

        try:
            refuse_unwritable(str(value))
        except InvalidInputError as error:
            self.fail(error.message, param, ctx)
        return str(value)


class NotForAdding(click.Option):
    """A required option that `extract --add` does without."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        if isinstance(ctx.params.get("add"), str) and self.value_is_missing(value):
            return None
        return super().process_value(ctx, value)


OUTPUT = OutputPath()
"""Of every option and argument that names what is written."""
RESULTS_INPUT = ResultPath()
"""Of every option and argument that names results to read."""
STORE_OR_RESULTS = StoreOrResultPath()
"""Of the arguments of `figure`."""
STORE_OUTPUT = StorePath()
"""Of every option and argument that names a store to write."""


def names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Comma-separated names."""
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


def size(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """WIDTHxHEIGHT in pixels; `none` if the option allows it."""
    if value is None or (value.lower() == "none" and str(param.metavar).endswith("none")):
        return None
    width, cross, height = value.lower().partition("x")
    if not cross or not width.isdecimal() or not height.isdecimal() or not int(width) * int(height):
        raise click.BadParameter(f"expected WIDTHxHEIGHT in pixels such as 640x480, found {value!r}", param=param)
    return int(width), int(height)


def shard(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """I/N: the I-th of N processes."""
    if value is None:
        return None
    rank, slash, of = value.partition("/")
    if not slash or not rank.isdecimal() or not of.isdecimal() or int(rank) >= int(of):
        raise click.BadParameter(f"expected I/N with I below N such as 0/2, found {value!r}", param=param)
    return int(rank), int(of)


def numbers(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Comma-separated numbers and ranges."""
    if value is None:
        return None
    try:
        return tuple(n for part in value.split(",") for n in _number_range(part))
    except ValueError as error:
        raise click.BadParameter(f"expected numbers or ranges such as 0,3,8-11, found {value!r}", param=param) from error


def blocks(context: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Half-open range of the blocks from the first number to the last."""
    found = numbers(context, param, value)
    return (found[0], found[-1] + 1) if found else None


def decimals(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Comma-separated numbers such as 1e-3."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(",") if part.strip())
    except ValueError as error:
        raise click.BadParameter(f"expected numbers such as 1e-3,1e-2, found {value!r}", param=param) from error


def _number_range(part: str) -> range:
    first, dash, last = part.strip().partition("-")
    if not _DIGITS.fullmatch(first) or (dash and not _DIGITS.fullmatch(last)):  # int would take 1_0 for 10
        raise ValueError("no number")
    found = range(int(first), int(last if dash else first) + 1)
    if not found or len(found) > MOST_NUMBERS:
        raise ValueError(f"{len(found)} numbers")
    return found


def seed(said: str) -> Callable[[Any], Any]:
    """The option --seed, with what it is the seed of."""
    return click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help=said)


def part_of_a_store(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options --arrays, --layers, --positions and --examples."""
    for option in (
        click.option("--examples", metavar="ID,N,M-K", help="Ids or numbers of examples, an id first; default: all."),
        click.option("--positions", callback=names, metavar="NAME,NAME", help="Positions; default: all."),
        click.option("--layers", callback=numbers, metavar="N,M-K", help="Layers; default: all."),
        click.option("--arrays", callback=names, metavar="NAME,NAME", help="Arrays, such as residual,attention_rows; default: all."),
    ):
        command = option(command)
    return command


SCHEDULER_HELP = "Where layers are solved: synchronous, threads, processes, or the address of a Dask scheduler."
workers = click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Threads or processes at once; default: one per core.")
only = click.option(
    "--only",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Leave out all other examples: label=1 for true captions, whose relation is the image's; category=Projective for a kind of "
    "relations. Repeated: any of a column's values.",
)
results = click.option("--out", type=OUTPUT, help="Folder of results and figures; default: STORE-results.")
examples = click.option(
    "--examples", metavar="ID,N,M-K", help="Ids or numbers of examples, an id first; default: the first eight that have a map."
)
window = click.option("--window", callback=blocks, metavar="A-B", help="Only through decoder blocks A to B; default: all.")
scheduler = click.option(
    "--scheduler", help="Where the work is done: synchronous (default), threads, processes, or a Dask scheduler's address."
)
