"""Figures of the results of a store: selects results and draws them on one pair of axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from stratascope.errors import NotRecordedError
from stratascope.figures.column_layout import place_legend
from stratascope.figures.drawing import LAYER_LABELS, draw_advantages, draw_layer_curves
from stratascope.figures.heatmaps import draw_grid, draw_heads
from stratascope.figures.layer_profiles import draw_share_stack
from stratascope.figures.predictions import draw_accuracies
from stratascope.figures.score_grids import draw_score_grid
from stratascope.probe.curve.metrics import main_metric
from stratascope.report.result_set import ResultSet, in_caption_text
from stratascope.results.stored_result import StoredResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POSITION_LABELS = {"final": "final token", "image": "image tokens, mean", "subject_box": "subject box", "object_box": "object box"}
CONTROL_LABELS = {"shuffled": "shuffled labels", "control": "control task"}
CONDITION_LABELS = {
    "blank": "blank images",
    "mirror": "mirrored images",
    "shuffled-image": "shuffled images",
    "patch-shuffle": "permuted image tokens",
    "untrained": "untrained weights",
}
MOST_ROWS = 24
"""Relations in a figure: those with the most examples."""


@dataclass(frozen=True)
class FigureSelection:
    """Task and position of the results that a figure shows."""

    task: str | None = None
    """None for truth, or the first task."""
    position: str | None = None
    """None for the final token, or the first position."""

    def matches(self, found: StoredResult) -> bool:
        """Whether `found`, a result of a probe, is selected."""
        return self.task in (None, found.task) and self.position in (None, found.position)

    def resolved(self, results: ResultSet) -> FigureSelection:
        """The same selection with the full name of its task.

        A name without a selection of examples stands for the one that was probed, such as `relation (label=1)`: where the same task was
        also probed on all examples, it stands for these, unless the caption states their labels at one of the positions.

        Raises
        ------
        NotRecordedError
            Several selections of examples were probed, and none without.
        """
        named = [task for task in results.tasks if task.startswith(f"{self.task} (")]
        if not named:
            return self
        whole = [c for c in results.curves if c.task == self.task]
        if whole and not any(map(in_caption_text, whole)):
            return self
        if len(named) > 1:
            if whole:
                return self
            raise NotRecordedError(f"expected one task of {', '.join(named)}, found {self.task!r}, which could be each; give its full name")
        return replace(self, task=named[0])


FIRST = FigureSelection()


def score_of(curve: StoredResult) -> str:
    """Metric that texts and figures report: that of the study, or AUROC for two classes, balanced accuracy for more, R2 for values."""
    given, facts = curve.attributes.get("metric"), curve.attributes
    return str(given) if given else "r2" if facts.get("targets") else main_metric(len(facts["classes"]))


def baseline_label(found: StoredResult) -> str:
    """Name of the baseline of an advantage: blank images, shuffled labels, ..."""
    return _label(found.attributes.get("baseline") or {})


def baseline_list(found: StoredResult) -> str:
    """Names of all baselines of an advantage; chance for a curve."""
    over = found.attributes.get("baseline") or {}
    names = [_label(one if isinstance(one, dict) else {}) for one in over.get("of", [over])]
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _label(over: Mapping[str, Any]) -> str:
    if "of" in over:
        return "the best baseline"
    if "layer" in over:
        return "the embeddings" if over["layer"] == 0 else f"layer {over['layer']}"
    control = str(over.get("task", "")).partition(":")[2]
    name = control or str(over.get("condition") or "chance")
    return {**CONTROL_LABELS, **CONDITION_LABELS}.get(name, name)


def selected_curve(results: ResultSet, selection: FigureSelection, *, needs: Callable[[StoredResult], object] = bool) -> StoredResult:
    """The curve of the selected task and position; NotRecordedError with the curves that exist."""
    for curve in results.curves:
        if selection.matches(curve) and needs(curve):
            return curve
    there = ", ".join(c.title for c in results.curves) or "none"
    wanted = f"{selection.task or 'any task'} at {f'position {selection.position}' if selection.position else 'any position'}"
    raise NotRecordedError(f"expected a layer curve of {wanted} with what the figure needs, found {there}; run `stratascope probe STORE`")


def selected_result(results: ResultSet, kind: str, selection: FigureSelection, command: str) -> StoredResult:
    """The result of a probe of the selected task and position; truth and the final token first; NotRecordedError if there is none."""
    order = {(c.task, c.position): k for k, c in enumerate(results.curves)}
    there = sorted(results.of(kind), key=lambda f: order.get((f.task, f.position), len(order)))
    for found in there:
        if selection.matches(found):
            return found
    names = ", ".join(f.title for f in there)
    raise NotRecordedError(
        f"expected a result of kind {kind} of {selection.task or 'any task'} at {selection.position or 'any position'}, found "
        f"{names or 'none'}; run `{command}`"
    )


def accuracy_by_relation(results: ResultSet, selection: FigureSelection = FIRST) -> StoredResult:
    """Accuracy by relation of the selected curve; NotRecordedError where there is none."""
    by_relation = ResultSet([f for f in results.own if f.kind != "accuracy_by" or f.attributes.get("by") == "relation"])
    return selected_result(by_relation, "accuracy_by", selection, "stratascope probe STORE --tasks truth")


def draw_curves(results: ResultSet, ax: Axes, selection: FigureSelection) -> Axes:
    """One task at every position, with controls and baselines of the first."""
    first = selected_curve(results, selection)
    shown = [c for c in results.curves if c.task == first.task and selection.position in (None, c.position)]
    stated = {c.position: " (stated by the caption)" if in_caption_text(c) else "" for c in shown}
    curves = {f"{POSITION_LABELS.get(c.position, c.position) or c.task}{stated[c.position]}": c.table("table") for c in shown}
    beside: dict[str, pd.DataFrame] = {}
    for found in results.baselines_of(first):
        beside[CONDITION_LABELS.get(found.condition, found.condition)] = found.table("table")
    for found in results.controls_of(first):
        control = found.task.partition(":")[2]
        beside[CONTROL_LABELS.get(control, control)] = found.table("table")
    metric = score_of(first)
    chance = float(first.rows(metric)["chance"].iloc[0])
    draw_layer_curves({**curves, **beside}, ax, metric=metric, chance=chance, muted=list(beside))
    place_legend(ax, columns=2 if any(stated.values()) else 3)
    return ax


def draw_positions(results: ResultSet, ax: Axes, selection: FigureSelection) -> Axes:
    """Score of one task by position and layer; dots for significant cells where one simultaneous band covers all positions."""
    first = selected_curve(results, selection)
    metric = score_of(first)
    curves = [c for c in results.curves if c.task == first.task]
    grids = (f.table("table") for f in results.of("score_grid") if f.task == first.task and f.attributes["metric"] == metric)
    positions = [c.position for c in curves]
    table = next((grid for grid in grids if set(grid["row"]) == set(positions)), None)
    if table is None:
        table = pd.concat([c.rows(metric).assign(row=c.position) for c in curves], ignore_index=True)
        family = first.attributes.get("family")
        joint = family is not None and all(c.attributes.get("family") == family for c in curves) and metric != "log_loss"
        table["found"] = joint & (table["low_simultaneous"] > table["chance"])
    else:
        table = table.set_index("row").loc[positions].reset_index()
    table = table.assign(row=table["row"].map(lambda name: POSITION_LABELS.get(name, name)))
    return draw_score_grid(table, ax, layers=LAYER_LABELS["residual"])


def draw_selected_advantages(results: ResultSet, ax: Axes, selection: FigureSelection) -> Axes:
    """Differences of a curve from its baselines and controls, with simultaneous bands."""
    curve = selected_curve(results, selection, needs=results.saved_advantages)
    draw_advantages({f"over {baseline_label(f)}": f.table("table") for f in results.saved_advantages(curve)}, ax)
    place_legend(ax)
    return ax


def draw_by_relation(results: ResultSet, ax: Axes, selection: FigureSelection) -> Axes:
    """Accuracy of a probe by relation and layer, the most frequent relations first."""
    table = accuracy_by_relation(results, selection).table("table")
    counts = table.groupby("by")["examples"].first().sort_values(ascending=False, kind="stable")
    grid = table.pivot(index="by", columns="layer", values="value").loc[counts.index[:MOST_ROWS]]
    return draw_grid(
        grid.to_numpy(),
        ax,
        rows=[f"{name} ({counts[name]})" for name in grid.index],
        columns=grid.columns.tolist(),
        label="Accuracy",
        column_label=LAYER_LABELS["residual"],
        low=min(0.5, float(grid.min().min())),
        high=1.0,
    )


def draw_codelength(results: ResultSet, ax: Axes, selection: FigureSelection) -> Axes:
    """Online codelength of one task and position by layer."""
    from stratascope.figures.reliability_diagrams import draw_codelength

    found = selected_result(results, "codelength", selection, "stratascope probe STORE --measures mdl")
    draw_codelength(found.table("table"), ax, task=found.task, layers=LAYER_LABELS["residual"])
    ax.set_title(found.title)
    ax.legend(loc="best")
    return ax


def draw_calibration(results: ResultSet, ax: Axes, selection: FigureSelection) -> Axes:
    """Reliability diagram of one task and position at the layer of the highest accuracy."""
    from stratascope.figures.reliability_diagrams import draw_reliability

    found = selected_result(results, "calibration", selection, "stratascope probe STORE --measures calibration")
    table = found.table("table")
    right = table["accuracy"].mul(table["examples"]).groupby(table["layer"]).sum()
    best = int(right.index.to_numpy()[right.to_numpy().argmax()])
    draw_reliability(table, ax, layer=best, title=f"{found.title}, layer {best}")
    ax.legend(loc="upper left")
    return ax


def draw_sizes(results: ResultSet, ax: Axes, selection: FigureSelection) -> Axes:
    """Share of subsets in which each layer is detected, by number of examples, of one task and position."""
    found = selected_result(results, "detection_by_size", selection, "stratascope probe STORE --measures sizes")
    drawn: Axes = found.result.plot(ax)
    return drawn


def draw_answers(results: ResultSet, ax: Axes, selection: FigureSelection) -> Axes:
    """Accuracy of the model's answers by relation, with intervals."""
    table = results.one("answer_confidence", "stratascope answers STORE").table("confidence")
    named = table[table["relation"] != ""]
    return draw_accuracies((named if len(named) else table.assign(relation="all")).head(MOST_ROWS), ax)


def draw_shares_by_part(results: ResultSet, ax: Axes, selection: FigureSelection) -> Axes:
    """Attention by part of the prompt, stacked."""
    found = results.one("attention_share", "stratascope share STORE")
    return draw_share_stack(found.means("share")[None], found.attributes["layers"], found.attributes["parts"], ax)


def draw_image_heads(results: ResultSet, ax: Axes, selection: FigureSelection) -> Axes:
    """Attention share of the image, head by decoder block."""
    found = results.one("attention_share", "stratascope share STORE")
    means = found.means("share")[..., found.attributes["parts"].index("image")]
    return draw_heads(means, found.attributes["layers"], ax, label="Attention share of the image", low=0.0)


def draw_overlap_heads(results: ResultSet, ax: Axes, selection: FigureSelection) -> Axes:
    """Overlap of the attention on the image with both boxes, head by decoder block."""
    found = results.one("box_overlap", "stratascope overlap STORE")
    means = found.means("overlap")[..., found.attributes["boxes"].index("both")]
    label = f"{str(found.attributes['measure']).capitalize()} in subject and object box"
    return draw_heads(means, found.attributes["layers"], ax, label=label, low=0.0)


def draw_attribution_heads(results: ResultSet, ax: Axes, selection: FigureSelection) -> Axes:
    """Share of the variance of the logit difference, head by decoder block."""
    table = results.one("logit_attribution", "stratascope attribution STORE").table("heads")
    heads = table.pivot(index="layer", columns="head", values="carried")
    return draw_heads(heads.to_numpy(), heads.index.tolist(), ax, label="Share of logit-difference variance", diverging=True)


def draw_entanglement(results: ResultSet, ax: Axes, selection: FigureSelection) -> Axes:
    """Probes on the image cells of one object, by block of the vision tower; of the subject by default.

    Raises
    ------
    NotRecordedError
        There is no such result, or not of the selected position.
    """
    result = results.one("entanglement", "stratascope entanglement STORE").result
    there = list(dict.fromkeys(result.table["position"]))
    position = selection.position or there[0]
    if position not in there:
        raise NotRecordedError(f"expected a position of {', '.join(there)}, found {position}")
    result.plot(ax, position=position)
    ax.set_xlabel(f"Vision block, cells of the {position.removesuffix('_box')} (hollow: merged)")
    place_legend(ax)
    return ax
