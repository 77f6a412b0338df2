"""Figures draw what they are given, refuse what means nothing, and leave global settings alone."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from stratascope.errors import InvalidInputError
from stratascope.figures.style import overlay
from stratascope.report import draw_attention_share, draw_layer_curves, draw_overlay, new_figure, save_figure

CURVE = pd.DataFrame({"layer": [0, 1, 2], "metric": "accuracy", "value": [0.5, 0.6, 0.9], "low": [0.4, 0.5, 0.8], "high": [0.6, 0.7, 0.95]})


def test_layer_curves_show_values_bands_and_chance() -> None:
    _, (ax,) = new_figure()
    draw_layer_curves({"final": CURVE, "blank": CURVE.assign(value=0.5)}, ax, chance=0.5, muted=["blank"])
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["final"].get_ydata(), CURVE["value"])
    assert lines["blank"].get_linestyle() == "--"
    assert len(ax.collections) == 2
    assert any(set(np.ravel(line.get_ydata())) == {0.5} for line in ax.lines if line.get_label().startswith("_"))


def test_an_unknown_metric_is_refused() -> None:
    _, (ax,) = new_figure()
    with pytest.raises(InvalidInputError, match=r"'f1' for 'x', found \['accuracy'\]"):
        draw_layer_curves({"x": CURVE}, ax, metric="f1")


def test_overlay_is_clearest_where_the_map_is_largest() -> None:
    _, (ax,) = new_figure()
    cells = np.array([[0.0, 1.0], [2.0, 4.0]])
    draw_overlay(np.full((10, 10, 3), 200, np.uint8), cells, ax, boxes={"cat": (0, 0, 0.5, 0.5)})
    np.testing.assert_allclose(ax.images[1].get_array(), overlay(cells))


@pytest.mark.parametrize("cells", [np.array([[np.nan]]), np.array([[-1.0]])])
def test_overlay_refuses_maps_that_are_none(cells: np.ndarray) -> None:
    _, (ax,) = new_figure()
    with pytest.raises(InvalidInputError, match="finite values"):
        draw_overlay(np.zeros((4, 4, 3), np.uint8), cells, ax)


def test_share_draws_means_and_heads() -> None:
    _, (ax,) = new_figure()
    parts = ("system", "image", "subject", "relation", "object", "caption_rest", "template")
    values = np.random.default_rng(0).dirichlet(np.ones(7), (5, 3, 2))
    draw_attention_share(values, np.full((5, 7), 1 / 7), parts, ax)
    image = next(line for line in ax.lines if line.get_label() == "image")
    np.testing.assert_allclose(image.get_ydata(), values[..., 1].mean((0, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_same_figure_gives_the_same_bytes_and_settings_stay(tmp_path: Path, ending: str) -> None:
    before = dict(mpl.rcParams)
    for name in ("a", "b"):
        figure, (ax,) = new_figure()
        draw_layer_curves({"final": CURVE}, ax)
        save_figure(figure, tmp_path / f"{name}.{ending}")
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    assert dict(mpl.rcParams) == before


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    figure, _ = new_figure()
    with pytest.raises(InvalidInputError, match=r"\.pdf, \.svg, \.png"):
        save_figure(figure, tmp_path / "x.jpeg")
