"""A page that is one file: what it may hold, and how it becomes HTML that needs no network, no script and no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import InvalidInputError, StoreError

if TYPE_CHECKING:
    from jinja2 import Template
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TINTS = 10
"""Steps of the tint of tokens; a strict policy allows no style in elements, so each step is a class of the style sheet."""


@dataclass(frozen=True)
class Source:
    """Where a number comes from."""

    file: str
    """Name of the results file, or of the store."""
    table: str = ""
    """Table, array or attribute in it."""
    detail: str = field(default="", compare=False)
    """Which row or mean; told with the number, but no footnote of its own."""

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.file, self.table, self.detail)))


@dataclass(frozen=True)
class Cited:
    """A number within a text, with its source: shown as `text`, kept unrounded as `value`, footnoted."""

    text: str
    value: float | int | str
    source: Source


Words = str | Sequence[str | Cited]
"""A text, or its pieces in order."""


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    words: Words
    lead: bool = False
    """Set larger: the sentences that a hurried reader reads."""


@dataclass(frozen=True)
class Fact:
    """One number, large, and what it is."""

    value: str | Cited
    label: str
    detail: Words = ""


@dataclass(frozen=True)
class Facts:
    """Facts side by side."""

    facts: Sequence[Fact]


@dataclass(frozen=True)
class Drawing:
    """A matplotlib figure, put into the page as SVG whose text stays text; colours follow light and dark."""

    figure: Figure
    alt: str
    """What a reader who does not see it is told."""
    caption: Words = ""
    title: str = ""
    sources: Sequence[Source] = ()


@dataclass(frozen=True)
class Picture:
    """An image, with a map laid over its cells and boxes drawn where given."""

    image: NDArray[np.uint8]
    """(height, width, 3)"""
    alt: str
    cells: NDArray[Any] | None = None
    """(row, column): no tint at 0, full tint at the largest size, of another colour below 0."""
    boxes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Name -> x0, y0, x1, y1 as shares of width and height."""
    caption: Words = ""


@dataclass(frozen=True)
class Tokens:
    """A text token by token, each tinted by its size as a share of the largest, in another colour below 0."""

    texts: Sequence[str]
    values: NDArray[Any]
    """(token,); NaN for no value."""
    caption: Words = ""


@dataclass(frozen=True)
class Interval:
    """A cell of a table: a share of 0 to 1 with its interval, written and drawn."""

    value: float
    low: float
    high: float
    digits: int = 1


@dataclass(frozen=True)
class Table:
    """A table; cells are texts, numbers or intervals."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    caption: Words = ""
    sources: Sequence[Source] = ()


@dataclass(frozen=True)
class Commands:
    """Commands to type, as they are."""

    lines: Sequence[str]
    title: str = ""


@dataclass(frozen=True)
class Missing:
    """What could stand here, and the command that makes it."""

    what: str
    command: str


@dataclass(frozen=True)
class Remark:
    """Something that a reader must not overlook."""

    words: Words


@dataclass(frozen=True)
class Cards:
    """Cards side by side, each with blocks of its own and a word on its edge such as right or wrong."""

    cards: Sequence[Card]


@dataclass(frozen=True)
class Card:
    """One card."""

    title: str
    blocks: Sequence[Block]
    badge: str = ""
    good: bool | None = None
    """Colour of the badge: True, False, or None for neither."""


@dataclass(frozen=True)
class Beside:
    """Blocks side by side where there is room."""

    blocks: Sequence[Block]


@dataclass(frozen=True)
class Folded:
    """Blocks under a line to open; open in print."""

    summary: str
    blocks: Sequence[Block]


Block = Prose | Facts | Drawing | Picture | Tokens | Table | Commands | Missing | Remark | Cards | Beside | Folded


@dataclass(frozen=True)
class Section:
    """A titled part of the page, with an anchor."""

    title: str
    blocks: Sequence[Block]
    anchor: str = ""


@dataclass(frozen=True)
class Page:
    """All of a page; `html` and `write` depend on it alone, so the same page gives the same bytes."""

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    footer: str = ""

    def html(self) -> str:
        """The page as one HTML text, under a content security policy that allows its own style sheet and data images, and nothing else."""
        style = _shell("page.css")
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
        notes: dict[Source, int] = {}
        for source in _sources(self.sections):
            notes.setdefault(source, len(notes) + 1)
        return _template().render(page=self, style=style, policy=policy, notes=notes) + "\n"

    def write(self, path: str | Path) -> Path:
        """Write the page; StoreError where the file cannot be written."""
        target = Path(path)
        if target.suffix not in (".html", ".htm"):
            raise InvalidInputError(f"expected a page's name to end in .html, found {target.name!r}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self.html(), encoding="utf-8", newline="\n")
        except OSError as error:
            raise StoreError(f"{path}: expected to write the page, found: {error}") from error
        return target


def _sources(value: Any) -> Iterator[Source]:
    """Every source, in the order of reading."""
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


def _pieces(words: Words | Cited) -> list[tuple[str | Cited, bool]]:
    """The pieces of a text, and whether each is followed by its footnote: the last of several numbers of one source is."""
    parts = [words] if isinstance(words, str | Cited) else list(words)
    found: list[tuple[str | Cited, bool]] = []
    after: Source | None = None
    for part in reversed(parts):
        if isinstance(part, Cited):
            found.append((part, part.source != after))
            after = part.source
        else:
            found.append((part, False))
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
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)
