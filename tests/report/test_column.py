"""Figures in a paper's column: nothing is cut off, no legend covers data, no name of a row covers the next."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from stratascope.errors import NotRecordedError
from stratascope.report.figure_drawing import FigureSelection
from stratascope.report.figure_registry import FIGURES
from stratascope.report.result_set import ResultSet, gather
from stratascope.results.registry import save_result
from tests.completed import completed

METHODS = ("raw attention, the head that looks there most", "norm-based attention, mean over heads", "position alone, the earliest first",
           "rollout, all blocks", "flow, few blocks", "token attribution, carried back", "gradient times input", "random")  # fmt: skip


@pytest.fixture(scope="module")
def findings(store, tmp_path_factory: pytest.TempPathFactory) -> ResultSet:
    """Planted results of the kinds whose figures have long names and much to say in the legend."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(2)
    facts = {"store": store.fingerprint()}
    value = rng.uniform(0.05, 0.95, len(METHODS))
    own = pd.DataFrame({"method": [f"m{k}" for k in range(len(METHODS))], "label": METHODS})
    methods = own.assign(correlation=value, low=value - 0.1, high=value + 0.1, behind=0.0, targets="cells", window="0-5", effect="size",
                         role=["method"] * 7 + ["reference"])  # fmt: skip
    methods = pd.concat([methods.assign(mode=mode) for mode in ("final", "later")], ignore_index=True)
    leading = {"targets": "cells", "mode": "later", "window": "0-5"}
    save_result(folder / "faithfulness.zarr.zip", completed("faithfulness", {"methods": methods}, {}, facts | {"leading": leading}))
    ratios = own.assign(over_others=4 * value, over_others_low=2 * value, over_others_high=9 * value)
    ratios.loc[0, "method"] = "knockout_final"
    save_result(folder / "pointing.zarr.zip", completed("pointing", {"methods": ratios}, {}, facts | {"others": True}))
    tower = [
        {"position": f"{thing}_box", "what": what, "stage": stage, "layer": layer, "value": 0.1 * layer, "low": 0.08 * layer,
         "high": 0.12 * layer, "chance": 0.0}
        for thing in ("subject", "object") for what in ("own place", "other's place", "relation")
        for stage, layer in [*(("tower", k) for k in range(8)), ("merged", 7)]
    ]  # fmt: skip
    told = facts | {"full_attention": [3]}
    save_result(folder / "entanglement.zarr.zip", completed("entanglement", {"table": pd.DataFrame(tower)}, {}, told))
    return gather(store, [folder])


def boxes(name: str, findings: ResultSet):
    """The figure's own box, that of its axes' ground, its legend's, and those of all of its texts."""
    figure = FIGURES[name].figure(findings)
    figure.canvas.draw()
    ax = figure.axes[0]
    ticks = [label.get_window_extent() for label in ax.get_yticklabels() if label.get_text()]
    labels = [label.get_window_extent() for label in (ax.xaxis.label, ax.yaxis.label) if label.get_text()]
    return figure.bbox, ax.get_window_extent(), ax.get_legend().get_window_extent(), ticks, labels


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faithfulness", "pointing", "entanglement"])
def test_nothing_is_cut_or_covered(findings: ResultSet, name: str) -> None:
    whole, ground, legend, ticks, labels = boxes(name, findings)
    for box in (legend, *ticks, *labels):
        assert whole.x0 - 1 <= box.x0
        assert box.x1 <= whole.x1 + 1
        assert whole.y0 - 1 <= box.y0
        assert box.y1 <= whole.y1 + 1
    assert legend.y0 >= ground.y1 - 1, "the legend stands above the data"
    ticks.sort(key=lambda box: box.y0)
    for below, above in itertools.pairwise(ticks):
        assert below.y1 <= above.y0 + 1
    assert ground.width > 0.4 * whole.width, "most of a figure is data"


def test_the_tower_is_drawn_of_the_thing_that_is_chosen(findings: ResultSet) -> None:
    of_object = FIGURES["entanglement"].figure(findings, FigureSelection(position="object_box"))
    assert "object" in of_object.axes[0].get_xlabel()
    assert "subject" in FIGURES["entanglement"].figure(findings).axes[0].get_xlabel()
    with pytest.raises(NotRecordedError, match="subject_box, object_box"):
        FIGURES["entanglement"].figure(findings, FigureSelection(position="final"))
