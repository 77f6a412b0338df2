"""HTML page in one file without network access, scripts or other files."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import InvalidInputError, StoreError
from stratascope.report.blocks import Cited, Interval, Picture, Section, Tokens, Words
from stratascope.results.stored_result import Source
from stratascope.store.io.durable import write_output

if TYPE_CHECKING:
    from jinja2 import Template
    from numpy.typing import NDArray

TINTS = 10
"""Steps of the tint of tokens, each a class of the style sheet: the content security policy forbids inline styles."""


@dataclass(frozen=True)
class Page:
    """Contents of a page; equal pages give equal bytes."""

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    footer: str = ""

    def html(self) -> str:
        """The page as HTML, with a content security policy for its style sheet and data images alone."""
        style = _shell("page.css")
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
        notes: dict[Source, int] = {}
        for source in _sources(self.sections):
            notes.setdefault(source, len(notes) + 1)
        return _template().render(page=self, style=style, policy=policy, notes=notes) + "\n"

    def write(self, path: str | Path) -> Path:
        """Write the page.

        Parameters
        ----------
        path
            Ends in .html or .htm.

        Raises
        ------
        InvalidInputError
            If the name ends otherwise.
        StoreError
            If the file cannot be written.
        """
        target = Path(path)
        if target.suffix not in (".html", ".htm"):
            raise InvalidInputError(f"expected a page's name to end in .html, found {target.name!r}")
        try:
            text = self.html().encode()
            write_output(target, lambda file: file.write(text))
        except OSError as error:
            raise StoreError(f"{path}: expected to write the page, found: {error}; make room or choose another path") from error
        return target


def _sources(value: Any) -> Iterator[Source]:
    """All sources in reading order."""
    if isinstance(value, Source):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _sources(item)
    elif is_dataclass(value):
        for part in fields(value):
            yield from _sources(getattr(value, part.name))


def _shell(name: str) -> str:
    return (files("stratascope.report") / "shell" / name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    from stratascope.report.inline import inline_drawing, inline_pixels, tint_pixels

    # everything is escaped: captions, tokens and file names come from elsewhere
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(drawing=inline_drawing, pixels=inline_pixels, tint=tint_pixels, ground=_ground, step=_step, number=_number)
    environment.tests["cited"] = lambda value: isinstance(value, Cited)
    environment.tests["interval"] = lambda value: isinstance(value, Interval)
    environment.filters["pieces"] = _pieces
    environment.globals["kind"] = lambda block: type(block).__name__
    return environment.from_string(_shell("page.html"))


def _pieces(words: Words | Cited) -> list[tuple[str | Cited, Source | None]]:
    """The pieces of a text, and whose footnote follows each: the last of several numbers of one source has one, after its bracket."""
    parts = [words] if isinstance(words, str | Cited) else list(words)
    found: list[tuple[str | Cited, Source | None]] = []
    after: Source | None = None
    for part in reversed(parts):
        if isinstance(part, Cited):
            noted = part.source if part.source != after else None
            if noted and found and isinstance(text := found[-1][0], str) and text.startswith("]"):  # in it, it would read as an exponent
                found[-1:] = [(text[1:], None), ("]", noted)]
                noted = None
            found.append((part, noted))
            after = part.source
        else:
            found.append((part, None))
    return found[::-1]


def _ground(picture: Picture) -> NDArray[np.uint8]:
    """The picture, half its colour taken out where a tint is laid over it."""
    if picture.cells is None:
        return picture.image
    grey = picture.image.mean(-1, keepdims=True)
    return np.asarray((0.5 * picture.image + 0.5 * grey).astype(np.uint8))


def _step(tokens: Tokens) -> list[tuple[str, str]]:
    """Each text with the class of its tint: t1 to t10 above 0, n1 to n10 below."""
    values = np.nan_to_num(np.asarray(tokens.values, np.float64), nan=0.0)
    if len(values) != len(tokens.texts):
        raise InvalidInputError(f"expected {len(tokens.texts)} values, one a token, found {len(values)}")
    peak = float(np.abs(values).max(initial=0))
    steps = np.rint(TINTS * values / (peak if peak > 0 else 1)).astype(int)
    return [(text, f"{'n' if step < 0 else 't'}{abs(step)}") for text, step in zip(tokens.texts, steps, strict=True)]


def _number(value: Any) -> str:
    """A cell as text: numbers with three significant places, a dash for none."""
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.3g}".replace("-", "−")
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)
