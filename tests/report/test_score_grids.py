"""Heatmaps and panels show the numbers that they are given, and mark what is sure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stratascope.errors import InvalidInputError
from stratascope.figures.panels import draw_curve_panel, draw_value_panel, panel_figure, span_of
from stratascope.figures.score_grids import draw_confusion, draw_score_grid, draw_transfer
from stratascope.report import new_figure

CELLS = pd.DataFrame(
    [
        {
            "row": row,
            "layer": layer,
            "metric": "accuracy",
            "value": 0.5 + 0.1 * layer * (row == "object"),
            "chance": 0.5,
            "found": layer > 1,
        }
        for row in ("final", "object")
        for layer in range(4)
    ]
)
CURVE = pd.DataFrame({"layer": [0, 1, 2], "metric": "accuracy", "value": [0.5, 0.6, 0.9], "low": [0.4, 0.5, 0.8], "high": [0.6, 0.7, 0.95]})


def test_a_grid_shows_every_cell_and_dots_what_is_found() -> None:
    _, (ax,) = new_figure()
    draw_score_grid(CELLS, ax)
    shown = ax.images[0].get_array()
    np.testing.assert_allclose(shown, [[0.5] * 4, [0.5, 0.6, 0.7, 0.8]])
    assert sorted(map(tuple, ax.collections[0].get_offsets().astype(int).tolist())) == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["final", "object"], "in the order of the table"
    assert [t.get_text() for t in ax.texts] == [".50"] * 5 + [".60", ".70", ".80"], "few cells say their scores"
    wide = pd.concat([CELLS.assign(layer=CELLS["layer"] + 4 * k) for k in range(3)])
    _, (ax,) = new_figure()
    draw_score_grid(wide, ax)
    assert not ax.texts, "there is no room for numbers in twelve columns"
    with pytest.raises(InvalidInputError, match="each cell once"):
        draw_score_grid(pd.concat([CELLS, CELLS]), ax)


def test_transfer_outlines_where_training_and_test_are_the_same() -> None:
    _, (ax,) = new_figure()
    pairs = [{"layer": a, "to_layer": b, "metric": "auroc", "value": 0.3 + 0.1 * a, "chance": 0.5} for a in (1, 4) for b in (1, 3, 4)]
    draw_transfer(pd.DataFrame(pairs), ax)
    assert [patch.get_xy() for patch in ax.patches] == [(-0.5, -0.5), (1.5, 0.5)]
    assert ax.images[0].norm.vmin == pytest.approx(0.4), "a direction turned round is shown below chance"


def test_confusion_rows_sum_to_one() -> None:
    _, (ax,) = new_figure()
    table = pd.DataFrame({"label": ["a", "a", "b", "b"], "predicted": ["a", "b", "a", "b"], "count": [30, 10, 0, 5]})
    draw_confusion(table, ax)
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0.25], [0, 1]])
    assert [text.get_text() for text in ax.texts] == ["75", "25", "100"]
    assert ax.get_yticklabels()[0].get_text() == "a (40)"


def test_a_panel_marks_the_layers_detected() -> None:
    _, (ax,) = new_figure()
    draw_curve_panel(CURVE, ax, others={"blank": CURVE.assign(value=0.5)}, metric="accuracy", detected=((0, 0), (2, 3)))
    bars = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2]
    assert [list(bar.get_xdata()) for bar in bars] == [[-0.25, 0.25], [1.75, 3.25]]
    assert [text for text in ax.get_legend_handles_labels()[1] if "detected" in text] == ["detected above all of these"]


def test_values_stand_beside_all_examples() -> None:
    _, (ax,) = new_figure()
    table = CURVE.drop(columns="metric").assign(by="left of", examples=40, groups=30)
    draw_value_panel(table, ax, value="left of", overall=CURVE)
    assert ax.get_title(loc="left") or ax.get_title() == "left of (40)"
    assert len(ax.lines) == 2
    with pytest.raises(InvalidInputError, match="left of"):
        draw_value_panel(table, ax, value="under")


def test_panels_share_their_axes() -> None:
    figure, axes = panel_figure(5, columns=3)
    assert len(axes) == len(figure.axes) == 5
    axes[0].set_ylim(0.2, 0.9)
    assert axes[4].get_ylim() == (0.2, 0.9)
    low, high = span_of([CURVE], "accuracy")
    assert low < 0.4 < 0.95 < high
