"""Drawing functions on given axes, and new and saved figures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError, StoreError
from stratascope.figures.gallery import Tile, draw_tile
from stratascope.figures.style import COLOURS, COLUMN_WIDTH, GREY, MARKERS, paper_style
from stratascope.store.io.durable import write_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "r2": "R²",
    "spearman": "Spearman correlation",
    "compression": "compression",
}

MOST_BANDS = 3
"""Bands that overlap in one figure: more of them hide each other."""

LAYER_LABELS = {
    "residual": "Decoder layer (0: embeddings)",
    "vision_residual": "Vision layer (0: patch embeddings)",
    "head_outputs": "Decoder block",
}
"""Array -> label of the axis of its layers."""

PART_LABELS = {
    "system": "system turn",
    "image": "image",
    "subject": "subject",
    "relation": "relation",
    "object": "object",
    "caption_rest": "rest of caption",
    "template": "template",
}


def draw_layer_curves(
    curves: Mapping[str, pd.DataFrame],
    ax: Axes,
    *,
    metric: str = "accuracy",
    chance: float | None = None,
    muted: Sequence[str] = (),
    title: str | None = None,
) -> Axes:
    """Score by layer of each named curve, with the 95 % intervals of the first three as bands, and the chance level.

    Parameters
    ----------
    curves
        Name -> table with columns layer, metric, value, low, high.
    ax
        Where to draw.
    metric
        Which rows of the tables.
    chance
        Height of the chance line; none where it is not one number.
    muted
        Names of controls and baselines: drawn dashed in grey.
    title
        Over the axes.

    Raises
    ------
    InvalidInputError
        If a table has no rows of the metric.
    """
    from matplotlib.ticker import MaxNLocator

    lively = 0
    dashes: list[Any] = ["--", ":", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2))]
    for drawn, (name, table) in enumerate(curves.items()):
        rows = table[table["metric"] == metric].sort_values("layer")
        if rows.empty:
            raise InvalidInputError(f"expected rows of metric {metric!r} for {name!r}, found {sorted(table['metric'].unique())}")
        layer, value = rows["layer"].to_numpy(), rows["value"].to_numpy(float)
        if name in muted:
            colour, marker, line, width = GREY, None, dashes[list(muted).index(name) % len(dashes)], 1.1
        else:
            colour, marker, line, width = COLOURS[lively % len(COLOURS)], MARKERS[lively % len(MARKERS)], "-", 1.4
            lively += 1
        if drawn < MOST_BANDS:
            ax.fill_between(layer, rows["low"].to_numpy(float), rows["high"].to_numpy(float), color=colour, alpha=0.18, linewidth=0)
        ax.plot(layer, value, color=colour, marker=marker, linestyle=line, linewidth=width, label=name)
    if chance is not None:
        ax.axhline(chance, color="black", linewidth=0.7, linestyle=(0, (1, 2)), zorder=0)
        ax.text(1.01, chance, "chance", transform=ax.get_yaxis_transform(), va="center", fontsize=6.5)
    ax.set_xlabel(LAYER_LABELS["residual"])
    ax.set_ylabel(metric_label(metric))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if title:
        ax.set_title(title)
    return ax


def metric_name(metric: str) -> str:
    """Name of a metric within a sentence, such as `balanced accuracy`."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def metric_label(metric: str) -> str:
    """Name of a metric as the label of an axis."""
    name = metric_name(metric)
    return name[:1].upper() + name[1:]


def label_shares(ax: Axes, label: str, title: str | None = None) -> Axes:
    """Label axes of shares by decoder layer: 0 to 100 % upwards, whole layers across."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    ax.set_xlabel(LAYER_LABELS["residual"])
    ax.set_ylabel(label)
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if title:
        ax.set_title(title)
    return ax


def draw_advantages(advantages: Mapping[str, pd.DataFrame], ax: Axes, *, title: str | None = None) -> Axes:
    """Differences of scores by layer, with 95 % simultaneous bands; a band that excludes 0 is significant.

    Parameters
    ----------
    advantages
        Name -> table with columns layer, metric, value, low_simultaneous, high_simultaneous.
    ax
        Axes to draw on.
    title
        Title of the axes.
    """
    from matplotlib.ticker import MaxNLocator

    metric = ""
    for k, (name, table) in enumerate(advantages.items()):
        rows = table.sort_values("layer")
        layer, metric = rows["layer"].to_numpy(), str(rows["metric"].iloc[0])
        low, high = (rows[f"{end}_simultaneous"].to_numpy(float) for end in ("low", "high"))
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        ax.fill_between(layer, low, high, color=colour, alpha=0.18, linewidth=0)
        ax.plot(layer, rows["value"].to_numpy(float), color=colour, marker=marker, label=name)
    ax.axhline(0, color=GREY, linewidth=0.7)
    ax.set_xlabel(LAYER_LABELS["residual"])
    ax.set_ylabel(f"Difference in {metric_name(metric)}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if title:
        ax.set_title(title)
    return ax


def draw_attention_share(values: np.ndarray, tokens: np.ndarray, parts: Sequence[str], ax: Axes, *, title: str | None = None) -> Axes:
    """Attention share of image and text by decoder block, and their shares of the tokens.

    Parameters
    ----------
    values
        (example, layer, head, part); the lines are means over examples and heads; each head's own mean is a dot,
        since an average hides the heads.
    tokens
        (example, part) share of the tokens.
    parts
        Names of the last axis; "image" must be among them.
    ax
        Where to draw.
    title
        Over the axes.
    """
    from matplotlib.ticker import MaxNLocator

    by_head = values.mean(0)
    layers = np.arange(by_head.shape[0])
    image = parts.index("image") if isinstance(parts, list | tuple) else list(parts).index("image")
    words = [k for k, name in enumerate(parts) if name in ("subject", "relation", "object", "caption_rest")]
    other = [k for k in range(len(parts)) if k != image and k not in words]
    lines = (
        ("image", by_head[:, :, image], tokens[:, image].mean()),
        ("caption", by_head[:, :, words].sum(-1), tokens[:, words].sum(-1).mean()),
        ("system turn and template", by_head[:, :, other].sum(-1), tokens[:, other].sum(-1).mean()),
    )
    for k, (name, share, of_tokens) in enumerate(lines):
        beside = layers[:, None] + 0.12 * (k - 1)
        ax.scatter(np.broadcast_to(beside, share.shape), share, s=7, color=COLOURS[k], alpha=0.45, linewidths=0)
        ax.plot(layers, share.mean(1), color=COLOURS[k], marker=MARKERS[k], label=name)
        ax.axhline(of_tokens, color=COLOURS[k], linestyle=":", linewidth=0.9)
        # a mark at its end, so that the three are told apart without their hues
        place = ax.get_yaxis_transform()
        ax.plot(1, of_tokens, MARKERS[k], color=COLOURS[k], mfc="white", markersize=3, transform=place, clip_on=False, zorder=3)
    ax.plot([], [], "o", color=GREY, markersize=2.5, alpha=0.6, label="one head")
    ax.plot([], [], color=GREY, linestyle=":", linewidth=0.9, label="share of the tokens")
    ax.set_xlabel("Decoder block")
    ax.set_ylabel("Attention share (final token)")
    ax.set_ylim(0, 1)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if title:
        ax.set_title(title)
    return ax


def draw_overlay(
    image: np.ndarray, cells: np.ndarray, ax: Axes, *, boxes: Mapping[str, Sequence[float]] | None = None, title: str | None = None
) -> Axes:
    """An image with a map laid over its cells.

    Parameters
    ----------
    image
        (height, width, 3) uint8.
    cells
        (rows, columns) values of at least 0: transparent at 0, full colour at the largest.
    ax
        Where to draw.
    boxes
        Name -> x0, y0, x1, y1 as shares of width and height, drawn and named.
    title
        Over the axes.

    Raises
    ------
    InvalidInputError
        If a value is negative or not finite.
    """
    if not np.isfinite(cells).all() or (cells < 0).any():
        raise InvalidInputError("expected a map of finite values of at least 0")
    draw_tile(Tile(image, cells, boxes=boxes or {}), ax)
    if title:
        ax.set_title(title)
    return ax


def new_figure(columns: int = 1, *, width: float | None = None, height: float = 2.4) -> tuple[Figure, list[Axes]]:
    """A figure of side-by-side axes in the project's style, without touching pyplot's state.

    Parameters
    ----------
    columns
        How many axes.
    width, height
        Of the figure, in inches; a paper's column for each of the axes by default.

    Returns
    -------
    tuple
        The figure and its axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with paper_style():
        figure = Figure(figsize=(width or COLUMN_WIDTH * columns, height))
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def save_figure(figure: Figure, path: Path | str) -> Path:
    """Write a figure with no date inside, so that the same results give the same file.

    Parameters
    ----------
    figure
        Of `new_figure`, or any other.
    path
        Ends in .png, .pdf or .svg.

    Raises
    ------
    InvalidInputError
        If the name ends otherwise.
    StoreError
        If the file cannot be written; one that was there before is left as it was.
    """
    path = Path(path)
    metadata: dict[str, dict[str, None]] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}
    if path.suffix not in metadata:
        raise InvalidInputError(f"expected a figure's name to end in {', '.join(metadata)}, found {path.name!r}")
    drawn = BytesIO()
    with paper_style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "constrained_layout not applied")  # long names on a small figure: they are cut off
        figure.savefig(drawn, format=path.suffix[1:], metadata=metadata[path.suffix])
    try:
        write_output(path, lambda file: file.write(drawn.getbuffer()))
    except OSError as error:
        raise StoreError(f"{path}: expected to write the figure, found: {error}; make room or choose another path") from error
    return path
