"""Results show themselves in a few lines, and in a notebook with a table and a figure; nothing in them becomes markup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes

from stratascope.results.result import Result, new_axes

HOSTILE = "<img src=x onerror=alert(1)>"


class Example(Result):
    attributes: Mapping[str, Any]

    @property
    def _heading(self) -> str:
        return HOSTILE

    def summary(self) -> str:
        return HOSTILE

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame({HOSTILE: [HOSTILE], "value": [1 / 3]})

    def plot(self, ax: Axes | None = None) -> Axes:
        return new_axes(ax).plot([0, 1], label="a line")[0].axes


def test_text_has_no_table_and_html_escapes_all() -> None:
    assert repr(Example({})) == f"{HOSTILE}\n  {HOSTILE}"
    shown = Example({})._repr_html_()
    assert HOSTILE not in shown
    assert shown.count("&lt;img src=x") == 5
    assert "0.333" in shown
    assert "data:image/png;base64," in shown


@pytest.mark.slow
def test_results_of_every_kind_show_themselves(store) -> None:
    from stratascope.analysis import answer_confidence, attention_overlap, attention_share, rollout_examples
    from stratascope.probe import layer_curve

    curve = layer_curve(store, folds=4, draws=200)
    results = [curve, curve.difference(), answer_confidence(store), attention_share(store)]
    results += [rollout_examples(store, [0, 1]), attention_overlap(store)]
    for result in results:
        assert repr(result).startswith(type(result).__name__)
        assert len(repr(result)) < 800
        assert "<table" in result._repr_html_()
    assert "<img" in curve._repr_html_()
