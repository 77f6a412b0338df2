"""Curves of a report: a panel a position, and what the caption states is marked in the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stratascope.figures.drawing import MOST_BANDS, draw_layer_curves, new_figure
from stratascope.probe import probe_study
from stratascope.report import gather
from stratascope.report.curve_panels import COLUMNS, curve_panels
from stratascope.report.figure_drawing import POSITION_LABELS
from stratascope.results.locations import ENDING
from stratascope.store import ActivationStore


@pytest.mark.slow
def test_no_panel_is_dropped_where_positions_fill_more_than_a_row(store: ActivationStore, tmp_path: Path) -> None:
    """The fifth position of a row of four was, once."""
    fast: dict[str, Any] = {"layers": (5,), "draws": 200, "strengths": (1e-2,), "minimum": 5}
    positions = ("final", "subject", "object", "relation", "image", "subject_box", "object_box")
    assert len(positions) > COLUMNS
    for curve in probe_study(store, ("truth",), positions, **fast):
        curve.save(tmp_path / f"{curve.file_name}{ENDING}")
    axes = curve_panels(gather(store, [tmp_path]), "truth").axes
    titles = {ax.get_title(loc="left") or ax.get_title() for ax in axes}
    assert titles == {POSITION_LABELS.get(name, name) for name in positions}
    assert all(ax.lines for ax in axes)


@pytest.mark.slow
def test_every_position_has_a_panel_and_a_trivial_one_says_so(store: ActivationStore, tmp_path: Path) -> None:
    fast: dict[str, Any] = {"layers": (0, 5), "draws": 200, "strengths": (1e-2,), "minimum": 5, "control_draws": 2}
    for curve in probe_study(store, ("truth", "truth:shuffled", "relation"), ("final", "subject"), **fast):
        curve.save(tmp_path / f"{curve.file_name}{ENDING}")
    results = gather(store, [tmp_path])
    figure = curve_panels(results, "truth")
    assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes] == ["final token", "subject"]
    assert not any("stated" in text.get_text() for ax in figure.axes for text in ax.texts)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[:2] == ["probe", "shuffled labels"]
    assert named[-1] == "chance"
    # one line style a name in all panels
    styles = [line.get_linestyle() for ax in figure.axes for line in ax.lines if line.get_label() == "shuffled labels"]
    assert len(styles) == 2
    assert len(set(styles)) == 1
    marked = [[text.get_text() for text in ax.texts] for ax in curve_panels(results, "relation").axes]
    assert marked == [["stated by the caption"], []]


def test_no_more_than_three_bands_overlap() -> None:
    rows = pd.DataFrame({"layer": [0, 1], "metric": "auroc", "value": [0.5, 0.6], "low": [0.4, 0.5], "high": [0.6, 0.7]})
    _, (ax,) = new_figure()
    draw_layer_curves({str(k): rows for k in range(6)}, ax, metric="auroc")
    assert len(ax.lines) == 6
    assert len(ax.collections) == MOST_BANDS
