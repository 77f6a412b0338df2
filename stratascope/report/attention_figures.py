"""Named figures of attention: its shares, its overlap with boxes, and what that predicts of the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stratascope.errors import NotRecordedError
from stratascope.figures.column_layout import place_legend
from stratascope.figures.drawing import draw_attention_share
from stratascope.figures.heatmaps import draw_heads
from stratascope.figures.predictions import draw_prediction
from stratascope.figures.stacked_bands import draw_share_stack
from stratascope.figures.vision_tower import draw_tower
from stratascope.results.collection import Findings
from stratascope.results.view import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stratascope.report.figure_selection import Choice


def draw_share(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """Attention on image and text beside their share of the tokens, every head a dot."""
    found = share_of(findings)
    draw_attention_share(found.means("share")[None], found.result.arrays["token_share"][1], found.attributes["parts"], ax)
    place_legend(ax, columns=3)
    return ax


def draw_share_parts(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """Attention by part of the prompt, adding up to one."""
    found = share_of(findings)
    return draw_share_stack(found.means("share")[None], found.attributes["layers"], found.attributes["parts"], ax)


def draw_image_heads(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """The image's share of each head's attention."""
    found = share_of(findings)
    means = found.means("share")[..., found.attributes["parts"].index("image")]
    return draw_heads(means, found.attributes["layers"], ax, label="share on the image", low=0.0)


def draw_overlap_heads(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """How much of each head's attention to the image lies in the boxes of subject and object."""
    found = findings.one("box_overlap", "overlap with boxes", "stratascope overlap STORE")
    means = found.means("overlap")[..., found.attributes["boxes"].index("both")]
    return draw_heads(means, found.attributes["layers"], ax, label=f"{found.attributes['measure']} in both boxes", low=0.0)


def draw_answer_prediction(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """Whether the overlap predicts a right answer, by layer and head, beside the boxes' geometry alone."""
    found = findings.one("answer_prediction", "what overlap predicts of answers", "stratascope overlap STORE")
    return draw_prediction(found.table("auroc"), found.attributes["baseline"], ax)


def share_of(findings: Findings) -> Found:
    """The attention share; NotRecordedError where there is none."""
    return findings.one("attention_share", "attention shares", "stratascope share STORE")


def draw_entangled(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """What can be read from the cells of one of the two things, by block of the tower: of the subject, unless another is chosen.

    Raises
    ------
    NotRecordedError
        If the results are absent, or not of the position that is chosen.
    """
    found = findings.one("entanglement", "what the vision tower holds of the two things", "stratascope entanglement STORE")
    table = found.table("table")
    there = list(dict.fromkeys(table["position"]))
    position = choice.position or there[0]
    if position not in there:
        raise NotRecordedError(f"expected a position of {', '.join(there)}, found {position}; give one of them as --position")
    own = table[table["position"] == position]
    curves = {str(what): rows.reset_index(drop=True) for what, rows in own.groupby("what", sort=False)}
    marked = found.attributes["full_attention"]
    # where every block sees the whole image, a mark says nothing
    draw_tower(curves, ax, full_attention=[] if len(marked) >= table["layer"].max() else marked)
    ax.set_xlabel(f"vision blocks, cells of the {position.removesuffix('_box')} (hollow: merged)")
    place_legend(ax)
    return ax
