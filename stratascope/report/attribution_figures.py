"""Named figures of attribution: faithfulness, localisation, direct logit attribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from stratascope.analysis.knockout_targets import MODE_LABELS
from stratascope.figures.attributions import draw_carried
from stratascope.figures.column_layout import place_legend
from stratascope.figures.correlations import draw_correlations
from stratascope.figures.heatmaps import draw_heads
from stratascope.figures.localisation import draw_ratios
from stratascope.results.collection import Findings
from stratascope.results.view import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stratascope.report.figure_selection import Choice

COMMAND = "stratascope pointing STORE --boxes instances.json"


def draw_faithfulness(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """Each method's correlation with the effect of hiding, best first, for both ways of hiding."""
    found = findings.one("faithfulness", "faithfulness", "stratascope faithfulness STORE")
    best = found.attributes["leading"]
    table = found.table("methods")
    same = table[(table["targets"] == best["targets"]) & (table["window"] == best["window"]) & (table["effect"] == "size")]
    modes = {MODE_LABELS.get(mode, mode): same[same["mode"] == mode] for mode in dict.fromkeys(same["mode"])}
    draw_correlations(modes, leading_rows(found)["label"].tolist(), ax)
    place_legend(ax, columns=1, inside="lower right")
    return ax


def draw_carried_by_block(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """What heads and the rest of each block carry of the answer, by block."""
    found = findings.one("logit_attribution", "attributions", "stratascope attribution STORE")
    heads, blocks = _carried(found), found.table("blocks")
    return draw_carried(heads.to_numpy(), blocks["carried"].to_numpy(), heads.index.tolist(), ax, label="share of the variance")


def draw_writers(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """What each head carries of the answer, head by block."""
    heads = _carried(findings.one("logit_attribution", "attributions", "stratascope attribution STORE"))
    return draw_heads(heads.to_numpy(), heads.index.tolist(), ax, label="share of the variance", diverging=True)


def _carried(found: Found) -> pd.DataFrame:
    return found.table("heads").pivot(index="layer", columns="head", values="carried")


def draw_pointing(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """How much more each method gives the things that are named than others."""
    found = findings.one("pointing", "what points at the named things", COMMAND)
    return draw_ratios(found.table("methods"), against(found), ax)


def leading_rows(found: Found) -> pd.DataFrame:
    best, table = found.attributes["leading"], found.table("methods")
    same = table["effect"] == "size"
    for name in ("targets", "mode", "window"):
        same &= table[name] == best[name]
    return table[same].sort_values("correlation", ascending=False, kind="stable").reset_index(drop=True)


def against(found: Found) -> str:
    """What the named things were compared with."""
    return "others" if found.attributes["others"] else "ground"
