"""Sections of a report on probes and answers; a missing result is named with the command that computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from stratascope.figures.drawing import metric_name
from stratascope.report.blocks import Beside, Block, Drawing, Folded, Interval, Missing, Remark, Table
from stratascope.report.curve_panels import curve_panels
from stratascope.report.figure_drawing import FigureSelection, accuracy_by_relation, score_of
from stratascope.report.figure_registry import FIGURES
from stratascope.report.headline import curve_band, peak
from stratascope.report.result_set import ResultSet, in_caption_text
from stratascope.report.task_words import task_words
from stratascope.results.probe_runs import earlier_text, run_names
from stratascope.results.stored_result import StoredResult

WIDE, HALF = 6.6, 4.1
"""Inches of a figure over the page's width, and of one beside another."""
MOST_ROWS = 40
OPEN_ADVANTAGES = 4
"""Figures of advantages that are open; those of further curves are folded."""


def curve_blocks(results: ResultSet, store: str) -> list[Block]:
    """Layer curves of each task with bands, controls and baselines; a folded table of their numbers."""
    if not results.curves:
        return [Missing("No layer curves yet; make them with", f"stratascope probe {store} --tasks truth --baseline BLANK.zarr")]
    blocks: list[Block] = _runs(results)
    for task in results.tasks:
        curves = [c for c in results.curves if c.task == task]
        shown = [*curves, *results.controls_of(curves[0]), *results.baselines_of(curves[0])]
        words = task_words(task)
        blocks.append(
            Drawing(
                curve_panels(results, task),
                f"{metric_name(score_of(curves[0]))} by layer of probes for {words}, by position, with baselines and chance level",
                f"{_folds(curves[0])}Bands: 95 % CI (pointwise) of the probe and the first two beside it, bootstrap over images; bars: "
                "layers detected above all of these, by the wider simultaneous bands. Layer k: residual stream after k decoder blocks.",
                f"{task}: {words}{_trivial(curves)}",
                [c.source("tables/table") for c in shown],
            )
        )
        blocks.append(Folded(f"{task}: table", [_curve_table(c) for c in curves]))
    if not results.beside:
        blocks.append(
            Missing("No text-only baseline yet; extract with --condition blank, then", f"stratascope probe {store} --baseline BLANK.zarr")
        )
    with_gain = [c for c in results.curves if results.saved_advantages(c)]
    pairs = [
        Drawing(
            FIGURES["advantage"].figure(results, FigureSelection(c.task, c.position or None), width=HALF, height=2.5),
            f"difference between the probe for {c.title} and its baselines, by layer",
            f"Bands: {curve_band(c)}; a band that excludes 0 is significant.",
            f"{c.title}: advantage over baselines",
            [a.source("tables/table") for a in results.saved_advantages(c)],
        )
        for c in with_gain
    ]
    blocks += [Beside(pairs[:OPEN_ADVANTAGES])] if pairs else []
    if rest := pairs[OPEN_ADVANTAGES:]:
        blocks.append(Folded(f"Advantages over baselines of {len(rest)} further curves", [Beside(rest)]))
    sizes = [
        Drawing(
            FIGURES["sizes"].figure(results, FigureSelection(f.task, f.position or None), width=HALF, height=2.6),
            f"share of random subsets in which each layer of the probe for {f.title} is detected, by number of examples",
            f"Detected over chance by a {100 * float(f.attributes['level']):g} % simultaneous band over the layers of each subset.",
            f"{f.title}: detected layers by number of examples",
            [f.source("tables/table")],
        )
        for f in results.of("detection_by_size")
    ]
    return [*blocks, Beside(sizes)] if sizes else blocks


def _runs(results: ResultSet) -> list[Block]:
    """Which curves are of which run of `probe`, where there are several, and what was left out."""
    runs = run_names(results.curves)
    text = []
    if len(runs) > 1:
        named = "; ".join(f"{f'run {run}' if run else 'made in Python'}: {', '.join(titles)}" for run, titles in runs.items())
        text.append(f"The curves are of {len(runs)} runs of probe, and the simultaneous band of each covers its own curves alone. {named}.")
    if results.earlier:
        text.append(f"Left out: {earlier_text(results.earlier)}.")
    return [Remark(" ".join(text))] if text else []


def _trivial(curves: list[StoredResult]) -> str:
    """Note on the positions where the caption states the labels of a task."""
    places = [c.position for c in curves if in_caption_text(c)]
    return f" (stated by the caption at {', '.join(places)}: not a finding there)" if places else ""


def _folds(curve: StoredResult) -> str:
    """How a curve was validated, as a sentence."""
    count = curve.table("folds")["fold"].nunique()
    return f"Out-of-fold scores of {count}-fold cross-validation. " if count > 1 else ""


def _curve_table(curve: StoredResult) -> Table:
    score = score_of(curve)
    metrics = [m for m in dict.fromkeys(curve.table("table")["metric"]) if m != score]
    rows = curve.rows(score)
    others = {m: curve.rows(m).set_index("layer")["value"] for m in metrics}
    cells = [[int(row["layer"]), _cell(row, score), *(float(others[m][row["layer"]]) for m in metrics)] for _, row in rows.iterrows()]
    names = [metric_name(m) for m in (score, *metrics)]
    return Table(["layer", *names], cells, curve.title, sources=[curve.source("tables/table")])


def _cell(row: pd.Series[Any], score: str) -> Interval | float:
    if score in ("r2", "log_loss"):  # not between 0 and 1
        return float(row["value"])
    return Interval(float(row["value"]), float(row["low"]), float(row["high"]), percent=score.endswith("accuracy"))


def position_blocks(results: ResultSet, store: str) -> list[Block]:
    """Position by layer for each task with probes at more than one position."""
    blocks: list[Block] = []
    for task in results.tasks:
        curves = [c for c in results.curves if c.task == task]
        if len({c.position for c in curves}) < 2:
            continue
        blocks.append(
            Drawing(
                FIGURES["positions"].figure(results, FigureSelection(task), width=HALF, height=0.9 + 0.3 * len(curves)),
                f"{metric_name(score_of(curves[0]))} of probes for {task}, positions by layers",
                "Rows: token positions; columns: decoder layers. "
                "A dot marks scores significantly above chance, if the probes of all positions ran together.",
                f"{task}{_trivial(curves)}",
                [c.source("tables/table") for c in curves],
            )
        )
    command = f"stratascope probe {store} --positions final,subject,relation,object,image"
    return [Beside(blocks)] if blocks else [Missing("No task with probes at two positions yet; make the curves with", command)]


def component_blocks(results: ResultSet) -> list[Block]:
    """First two principal components by layer, coloured by label: one figure a position; empty without any."""
    return [
        Drawing(
            found.result.figure(),
            f"two principal components of the residual stream at {found.attributes['position']}, one panel a layer, coloured by label",
            "One dot per example; PC: principal component, with its share of the variance of the layer. The components show what varies "
            "most, which need not be what a probe or the model reads.",
            "",
            [found.source("arrays/scores"), found.source("arrays/explained")],
        )
        for found in results.of("principal_components")
    ]


def transfer_blocks(results: ResultSet) -> list[Block]:
    """Probes tested on the examples of other stores: one figure and its summary each; empty without any."""
    blocks: list[Block] = []
    for found in results.of("cross_transfer"):
        result = found.result
        title = f"{found.title}, tested on {found.attributes['to']}"
        figure = result.figure()
        alt = f"{metric_name(result.metric)} by layer of probes for {title}, with the score in the store of training"
        words = [line.strip() for line in result.summary().splitlines()]
        caption = ". ".join([*words, "Bands: 95 % CI (pointwise), bootstrap over the test images."])
        blocks.append(Drawing(figure, alt, caption, title, [found.source("tables/table")]))
    return blocks


def relation_blocks(results: ResultSet, store: str) -> list[Block]:
    """Number of examples, accuracy of the model, and accuracy of the probe at its best layer, by relation."""
    answers = results.of("answer_confidence")
    probed = results.of("accuracy_by")
    if not answers and not probed:
        return [Missing("No results by relation yet; make them with", f"stratascope answers {store}")]
    columns, cells, sources = ["relation", "examples"], {}, []
    counts: dict[str, int] = {}
    if answers:
        table = answers[0].table("confidence")
        table = table[table["relation"] != ""]
        counts |= dict(zip(table["relation"], table["examples"].astype(int), strict=True))
        cells["accuracy of the model"] = {
            r["relation"]: Interval(r["accuracy"], r["accuracy_low"], r["accuracy_high"])
            if np.isfinite(r["accuracy_low"])
            else r["accuracy"]
            for r in table.to_dict("records")
        }
        sources.append(answers[0].source("tables/confidence"))
    if probed:
        found = accuracy_by_relation(results)
        curve = next((c for c in results.curves if (c.task, c.position) == (found.task, found.position)), None)
        table = found.table("table")
        layer = int(peak(curve)["layer"] if curve else table["layer"].max())
        table = table[table["layer"] == layer]
        for name, number in zip(table["by"], table["examples"], strict=True):
            counts.setdefault(name, int(number))
        column = f"accuracy of the probe, {found.title}, layer {layer}"
        cells[column] = {r["by"]: Interval(r["value"], r["low"], r["high"]) for r in table.to_dict("records")}
        sources.append(found.source("tables/table", f"layer {layer}"))
    order = sorted(counts, key=lambda name: (-counts[name], name))
    rows = [[name, counts[name], *(column.get(name) for column in cells.values())] for name in order[:MOST_ROWS]]
    left = f"The {MOST_ROWS} most frequent of {len(order)} relations. " if len(order) > MOST_ROWS else ""
    note = f"{left}95 % CI, clustered by image."
    blocks: list[Block] = [Table([*columns, *cells], rows, caption=note, sources=sources)]
    if not answers:
        blocks.append(Missing("No accuracy of the model yet; make it with", f"stratascope answers {store}"))
    return blocks


def remark_blocks(results: ResultSet) -> list[Block]:
    """Cautions on the interpretation of curves."""
    words = [
        "Interpret a curve only against its controls: the same probe without the image, on shuffled labels, on embeddings (layer 0).",
        "A decodable relation need not be used by the model; a knockout or an intervention tests that.",
    ]
    nonlinear = [c.title for c in results.curves if c.attributes.get("nonlinear")]
    if nonlinear:
        words.append(
            f"The probe for {', '.join(nonlinear[:4])} is not linear: it can find more than the model can read linearly. Compare it with a "
            "linear probe and with its own controls."
        )
    incomplete = [c.name for c in results.curves if bool(c.table("folds")["at_edge"].any())]
    if incomplete:
        words.append(
            f"In {', '.join(incomplete[:4])} the best inverse regularisation C is the largest of its grid at some layers: a larger C may "
            "score better."
        )
    return [Remark(text) for text in words]
