"""What a page may hold: blocks of text, numbers with their sources, figures, tables and cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from stratascope.results.stored_result import Source

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


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


class CommandLine(Protocol):
    """Writes commands of the command line, whose layer knows their options and defaults."""

    def __call__(self, command: str, store: str, options: Mapping[str, Any]) -> str:
        """`stratascope COMMAND STORE` with every option that differs from the command's default."""
        ...

    def accepts(self, command: str) -> frozenset[str]:
        """Names of the command's parameters."""
        ...


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
