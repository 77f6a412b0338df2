"""Blocks of a page: text, cited numbers, figures, tables and cards."""

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
    """A number in a text with a footnote to its source: shown as `text`, unrounded as `value`."""

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
    """Whether the paragraph is set larger."""


@dataclass(frozen=True)
class Fact:
    """One large number with its label."""

    value: str | Cited
    label: str
    detail: Words = ""


@dataclass(frozen=True)
class Facts:
    """Facts side by side."""

    facts: Sequence[Fact]


@dataclass(frozen=True)
class Drawing:
    """A matplotlib figure as inline SVG with text; its colours follow the light and dark theme."""

    figure: Figure
    alt: str
    """Alternative text."""
    caption: Words = ""
    title: str = ""
    sources: Sequence[Source] = ()


@dataclass(frozen=True)
class Picture:
    """An image with an optional map over its cells and optional boxes."""

    image: NDArray[np.uint8]
    """(height, width, 3)"""
    alt: str
    cells: NDArray[Any] | None = None
    """(row, column): transparent at 0, full colour at the largest size."""
    boxes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Name -> x0, y0, x1, y1 as shares of width and height."""
    caption: Words = ""
    signed: bool = False
    """Whether cells may be below 0; so it is where one of them is."""


@dataclass(frozen=True)
class Tokens:
    """A text with tokens coloured by their values, as the cells of a picture."""

    texts: Sequence[str]
    values: NDArray[Any]
    """(token,); NaN for no value."""
    caption: Words = ""
    signed: bool = False
    """Whether values may be below 0; so it is where one of them is."""


@dataclass(frozen=True)
class ColourScale:
    """Legend of the colours of pictures and tokens."""

    low: str
    """Text at the lowest colour."""
    high: str
    """Text at the highest colour."""
    signed: bool = False


@dataclass(frozen=True)
class Interval:
    """Table cell with a value between 0 and 1 and its interval, as text and as a bar."""

    value: float
    low: float
    high: float
    percent: bool = True
    """Whether the text is a percentage, as of an accuracy, or a number, as of an AUROC."""

    @property
    def text(self) -> str:
        """The value."""
        return f"{100 * self.value:.1f} %" if self.percent else f"{self.value:.3f}"

    @property
    def ends(self) -> str:
        """The interval, where there is one."""
        if self.low != self.low:
            return "too few images"
        return f"{100 * self.low:.1f} to {100 * self.high:.1f}" if self.percent else f"{self.low:.3f} to {self.high:.3f}"


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
    """Shell commands."""

    lines: Sequence[str]
    title: str = ""


@dataclass(frozen=True)
class Missing:
    """A missing result, and the command that computes it."""

    what: str
    command: str


@dataclass(frozen=True)
class Remark:
    """A caution."""

    words: Words


@dataclass(frozen=True)
class Cards:
    """Cards side by side."""

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
    """Blocks side by side on wide screens."""

    blocks: Sequence[Block]


@dataclass(frozen=True)
class Folded:
    """Collapsed blocks; expanded in print."""

    summary: str
    blocks: Sequence[Block]


Block = Prose | Facts | Drawing | Picture | ColourScale | Tokens | Table | Commands | Missing | Remark | Cards | Beside | Folded


@dataclass(frozen=True)
class Section:
    """Titled section of the page with an anchor."""

    title: str
    blocks: Sequence[Block]
    anchor: str = ""
