"""How results show themselves: a line where there is only text, a table and a figure in a notebook."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stratascope.figures.drawing import new_figure
from stratascope.figures.style import paper_style

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Summary:
    """What a result shows of itself."""

    title: str
    facts: Sequence[str] = ()
    table: pd.DataFrame | None = None
    draw: Callable[[Axes], Axes] | None = None
    """Draws the result on the axes that it is given."""


class Shown:
    """A result that shows itself; its class says what by `summary`."""

    def summary(self) -> Summary:
        """Title, facts, a table and a figure."""
        raise NotImplementedError

    def __repr__(self) -> str:
        shown = self.summary()
        return "\n  ".join([shown.title, *shown.facts])

    def _repr_html_(self) -> str:
        shown = self.summary()
        parts = [f"<b>{html.escape(shown.title)}</b>"]
        if shown.facts:
            parts.append("<ul>" + "".join(f"<li>{html.escape(fact)}</li>" for fact in shown.facts) + "</ul>")
        if shown.draw is not None:
            parts.append(_picture(shown.draw, shown.title))
        if shown.table is not None:
            # a caption is shown as it is, whatever it looks like
            parts.append(shown.table.to_html(index=False, max_rows=12, float_format="{:.3g}".format, escape=True, border=0))
        return "<div>" + "".join(parts) + "</div>"


def _picture(draw: Callable[[Axes], Axes], alt: str) -> str:
    figure, (ax,) = new_figure(1, width=4.6, height=2.5)
    buffer = io.BytesIO()
    with paper_style():
        draw(ax)
        if ax.get_legend() is None and ax.get_legend_handles_labels()[0]:
            ax.legend(loc="best")
        figure.savefig(buffer, format="png", dpi=110)
    code = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{code}">'
