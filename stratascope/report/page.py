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
from stratascope.figures.style import muted, overlay
from stratascope.report.blocks import Cited, Interval, Picture, Section, Tokens, Words
from stratascope.results.stored_result import Source
from stratascope.store.io.durable import write_output

if TYPE_CHECKING:
    from jinja2 import Template
    from numpy.typing import NDArray

STEPS = 10
"""Steps of the colours of tokens, each a class of the style sheet: the content security policy forbids inline styles."""
PANELS = {"": (255, 255, 255), "@media screen and (prefers-color-scheme: dark)": (28, 31, 38)}
"""Where colours of tokens apply -> colour of the panel behind them."""


@dataclass(frozen=True)
class Page:
    """Contents of a page; equal pages give equal bytes."""

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    footer: str = ""

    def html(self) -> str:
        """The page as HTML, with a content security policy for its style sheet and data images alone."""
        style = f"{_shell('page.css')}{_token_style()}"
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

    from stratascope.report.inline import inline_drawing, inline_pixels, overlay_pixels

    # everything is escaped: captions, tokens and file names come from elsewhere
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(drawing=inline_drawing, pixels=inline_pixels, overlay=overlay_pixels)
    environment.filters.update(ground=_ground, step=_step, number=_number)
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
    """The picture, muted where a map is laid over it."""
    return picture.image if picture.cells is None else muted(picture.image)


def _step(tokens: Tokens) -> list[tuple[str, str]]:
    """Each text with the class of its colour: t0 to t10 for values of one direction, p0 to p10 and n1 to n10 for signed ones."""
    values = np.nan_to_num(np.asarray(tokens.values, np.float64), nan=0.0)
    if len(values) != len(tokens.texts):
        raise InvalidInputError(f"expected {len(tokens.texts)} values, one a token, found {len(values)}")
    peak = float(np.abs(values).max(initial=0))
    steps = np.rint(STEPS * values / (peak if peak > 0 else 1)).astype(int)
    above = "p" if tokens.signed or (values < 0).any() else "t"
    return [(text, f"{'n' if step < 0 else above}{abs(step)}") for text, step in zip(tokens.texts, steps, strict=True)]


@cache
def _token_style() -> str:
    """Rules of the classes of `_step` and of the colour scales: `overlay`, with black or white ink, whichever is easier to read."""
    share = np.arange(1, STEPS + 1) / STEPS
    shown = {"t": overlay(share), "p": overlay(share, True), "n": overlay(-share, True)}
    rules = []
    for where, panel in PANELS.items():
        part = []
        for name, colours in shown.items():
            for step, (*colour, opacity) in enumerate(colours, start=1):
                seen = opacity * np.array(colour) + (1 - opacity) * np.array(panel) / 255
                light = np.where(seen <= 0.04045, seen / 12.92, ((seen + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
                part.append(f".{name}{step} {{ background: {_css(seen)}; color: {'#000' if light > 0.179 else '#fff'}; }}")
        rules.append("\n".join(part) if not where else f"{where} {{\n" + "\n".join(part) + "\n}")
    for name, ramp in {"one": overlay(np.linspace(0, 1, 9)), "two": overlay(np.linspace(-1, 1, 9), True)}.items():
        rules.append(f".ramp.{name} {{ background: linear-gradient(90deg, {', '.join(_css(colour[:3]) for colour in ramp)}); }}")
    return "\n".join(rules) + "\n"


def _css(colour: Any) -> str:
    return "#" + "".join(f"{round(255 * float(part)):02x}" for part in colour)


def _number(value: Any) -> str:
    """A cell as text: numbers with three significant places, a dash for none."""
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.3g}".replace("-", "−")
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)
