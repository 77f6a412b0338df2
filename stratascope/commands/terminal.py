"""Terminal of the commands: open a store, print escaped text, show a progress bar."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

STARTS_AGAIN = "stratascope.starts_again"
"""Key of click's context: whether the command that runs starts from the beginning after an interruption."""

SHOWN_AS = "stratascope.shown_as"
"""Key of click's context: path on this machine -> the address that it stands for."""


def open_store(path: str) -> ActivationStore:
    """Open a store by path, zip or address."""
    from stratascope.store import ActivationStore

    return ActivationStore.open(path)


def visible(text: str) -> str:
    """Escape control characters, so that text from a file cannot control the terminal.

    Line ends and tabs stay. C0 and C1 control characters, directional marks, line and paragraph separators, and lone surrogates become
    escapes.

    >>> visible("caption \x1b[2J")
    'caption \\x1b[2J'
    """
    return "".join(_escape(c) if c not in "\n\t" and _steers(c) else c for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _steers(character: str) -> bool:
    turns = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return character in turns or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def echo(text: object, err: bool = False, colours: Mapping[str, str] | None = None) -> None:
    """Print text with its control characters escaped; all output to the terminal goes through here.

    Parameters
    ----------
    text
        What to print.
    err
        Print to stderr.
    colours
        Name -> colour of parts of the text in the form [NAME: ...].
    """
    context = click.get_current_context(silent=True)
    plain = str(text)
    for path, address in (context.find_root().meta.get(SHOWN_AS, {}) if context else {}).items():
        plain = plain.replace(path, address)
    shown = visible(plain)
    if colours:
        shown = re.sub(rf"\[({'|'.join(colours)}): [^\[\]]*\]", lambda part: click.style(part[0], fg=colours[part[1]]), shown)
    click.echo(shown, err=err)


@contextmanager
def bar(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Progress bar where stderr is a terminal; call it with (done, total)."""
    from tqdm.auto import tqdm

    with tqdm(desc=name, unit=unit, disable=not sys.stderr.isatty(), leave=False) as shown:

        def tell(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield tell
