"""The parts of a report, each from results of one kind; what is absent is named with the command that makes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from stratascope.figures.drawing import PART_LABELS
from stratascope.report.blocks import Beside, Block, Drawing, Folded, Interval, Missing, Remark, Table
from stratascope.report.figure_registry import FIGURES
from stratascope.report.figure_selection import Choice, by_relation, score_of
from stratascope.report.headline import peak, percent, task_words
from stratascope.results.collection import Findings
from stratascope.results.view import Found

WIDE, HALF = 6.6, 4.1
"""Inches of a figure over the page's width, and of one beside another."""
MOST_ROWS = 40


def curve_blocks(findings: Findings, store: str) -> list[Block]:
    """Layer curves of each task, with bands, controls and baselines; their numbers folded away."""
    if not findings.curves:
        return [Missing("No layer curves yet; make them with", f"stratascope probe {store} --tasks truth --baseline BLANK.zarr")]
    blocks: list[Block] = []
    for task in findings.tasks:
        curves = [c for c in findings.curves if c.task == task]
        shown = [*curves, *findings.controls_of(curves[0]), *findings.baselines_of(curves[0])]
        words = task_words(task)
        blocks.append(
            Drawing(
                FIGURES["curves"].figure(findings, Choice(task), width=WIDE, height=2.7),
                f"{score_of(curves[0])} by layer of probes for {words}, one line a position, with baselines and chance",
                "Bands: each layer's own 95 % interval, by bootstrap over images. Layer k: the residual stream after k decoder blocks.",
                f"{task}: {words}",
                [c.source("tables/table") for c in shown],
            )
        )
        blocks.append(Folded(f"{task}: the numbers", [_curve_table(c) for c in curves]))
    if not findings.beside:
        blocks.append(
            Missing("No text-only baseline yet; extract with --condition blank, then", f"stratascope probe {store} --baseline BLANK.zarr")
        )
    with_gain = [c for c in findings.curves if findings.advantages_of(c)]
    pairs = [
        Drawing(
            FIGURES["advantage"].figure(findings, Choice(c.task, c.position or None), width=HALF, height=2.5),
            f"what the probe for {c.task} at {c.position} is above its baselines, by layer",
            "Bands hold for all layers together; where a band leaves 0 the advantage is real.",
            f"{c.task} at {c.position}: above its baselines",
            [a.source("tables/table") for a in findings.advantages_of(c)],
        )
        for c in with_gain[:4]
    ]
    return [*blocks, Beside(pairs)] if pairs else blocks


def _curve_table(curve: Found) -> Table:
    score = score_of(curve)
    metrics = [m for m in dict.fromkeys(curve.table("table")["metric"]) if m != score]
    rows = curve.rows(score)
    others = {m: curve.rows(m).set_index("layer")["value"] for m in metrics}
    cells = [[int(row["layer"]), _cell(row, score), *(float(others[m][row["layer"]]) for m in metrics)] for _, row in rows.iterrows()]
    return Table(["layer", score, *metrics], cells, curve.title, sources=[curve.source("tables/table")])


def _cell(row: pd.Series[Any], score: str) -> Interval | float:
    return float(row["value"]) if score == "r2" else Interval(float(row["value"]), float(row["low"]), float(row["high"]))


def position_blocks(findings: Findings, store: str) -> list[Block]:
    """Position by layer for each task that was probed at more than one position."""
    blocks: list[Block] = []
    for task in findings.tasks:
        curves = [c for c in findings.curves if c.task == task]
        if len({c.position for c in curves}) < 2:
            continue
        blocks.append(
            Drawing(
                FIGURES["positions"].figure(findings, Choice(task), width=HALF, height=0.9 + 0.3 * len(curves)),
                f"{score_of(curves[0])} of probes for {task}, positions by layers",
                "That the relation can be read where its own word stands is no finding; that its truth can be, is."
                if task == "relation"
                else "A row for each place in the prompt, a column for each layer.",
                f"{task}",
                [c.source("tables/table") for c in curves],
            )
        )
    command = f"stratascope probe {store} --positions final,subject,relation,object,image"
    return [Beside(blocks)] if blocks else [Missing("No task was probed at two positions yet; make the curves with", command)]


def attention_blocks(findings: Findings, store: str) -> list[Block]:
    """Attention share by span, and head by layer."""
    shares = findings.of("attention_share")
    if not shares:
        return [Missing("No attention shares yet; make them with", f"stratascope share {store}")]
    found = shares[0]
    parts, layers = found.attributes["parts"], found.attributes["layers"]
    tokens, means = found.result.arrays["token_share"][1], found.means("share").mean(1)
    top = [int(means[:, k].argmax()) for k in range(len(parts))]
    rows = [
        [PART_LABELS.get(name, name), *map(percent, (tokens[:, k].mean(), means[:, k].mean(), means[top[k], k])), int(layers[top[k]])]
        for k, name in enumerate(parts)
    ]
    return [
        Beside(
            [
                Drawing(
                    FIGURES["parts"].figure(findings, width=HALF, height=2.6),
                    "attention of the final token by part of the prompt, stacked, by decoder block",
                    "Mean over examples and heads. Attention is not information flow: see which method to believe.",
                    "Where the final token looks",
                    [found.source("arrays/share")],
                ),
                Drawing(
                    FIGURES["heads"].figure(findings, width=HALF, height=2.6),
                    "the image's share of each head's attention, heads by decoder blocks",
                    "Averages over heads hide single heads that look at nothing but the image.",
                    "Each head's share on the image",
                    [found.source("arrays/share")],
                ),
            ]
        ),
        *_overlap(findings),
        Table(
            ["part of the prompt", "of the tokens", "of the attention", "highest block", "which"],
            rows,
            caption="Means over examples and heads.",
            sources=[
                found.source("arrays/share", "mean over examples and heads"),
                found.source("arrays/token_share", "mean over examples"),
            ],
        ),
    ]


def _overlap(findings: Findings) -> list[Block]:
    """Each head's attention in the boxes, where that was measured."""
    found = [f for f in findings.of("box_overlap") if f.attributes["heads"] != [-1]]
    if not found:
        return []
    return [
        Drawing(
            FIGURES["overlap"].figure(findings, width=HALF, height=2.6),
            "how much of each head's attention to the image lies in the boxes of subject and object, heads by decoder blocks",
            "Mean over the examples whose boxes are known.",
            "Which heads look at the things that are named",
            [found[0].source("arrays/overlap")],
        )
    ]


def relation_blocks(findings: Findings, store: str) -> list[Block]:
    """Each relation: how many examples, how often the model is right, and the probe at its best layer."""
    answers = findings.of("answer_confidence")
    probed = findings.of("accuracy_by")
    if not answers and not probed:
        return [Missing("Nothing by relation yet; make it with", f"stratascope answers {store}")]
    columns, cells, sources = ["relation", "examples"], {}, []
    counts: dict[str, int] = {}
    if answers:
        table = answers[0].table("confidence")
        table = table[table["relation"] != ""]
        counts |= dict(zip(table["relation"], table["examples"].astype(int), strict=True))
        cells["the model is right"] = {
            r["relation"]: Interval(r["accuracy"], r["accuracy_low"], r["accuracy_high"])
            if np.isfinite(r["accuracy_low"])
            else r["accuracy"]
            for r in table.to_dict("records")
        }
        sources.append(answers[0].source("tables/confidence"))
    if probed:
        found = by_relation(findings, Choice())
        curve = next((c for c in findings.curves if (c.task, c.position) == (found.task, found.position)), None)
        table = found.table("table")
        layer = int(peak(curve)["layer"] if curve else table["layer"].max())
        table = table[table["layer"] == layer]
        for name, number in zip(table["by"], table["examples"], strict=True):
            counts.setdefault(name, int(number))
        column = f"a probe for {found.task}, {found.position}, layer {layer}"
        cells[column] = {r["by"]: Interval(r["value"], r["low"], r["high"]) for r in table.to_dict("records")}
        sources.append(found.source("tables/table", f"layer {layer}"))
    order = sorted(counts, key=lambda name: (-counts[name], name))
    rows = [[name, counts[name], *(column.get(name) for column in cells.values())] for name in order[:MOST_ROWS]]
    left = f"The {MOST_ROWS} most frequent of {len(order)} relations. " if len(order) > MOST_ROWS else ""
    note = f"{left}95 % intervals count images, not examples; few examples make wide ones."
    blocks: list[Block] = [Table([*columns, *cells], rows, caption=note, sources=sources)]
    if not answers:
        blocks.append(Missing("The model's own accuracy is absent; make it with", f"stratascope answers {store}"))
    return blocks


def remark_blocks(findings: Findings) -> list[Block]:
    """What a reader must know before believing a curve."""
    words = [
        "A curve means something beside its controls: the same probe without the image, on shuffled labels, on the embeddings (layer 0).",
        "That a probe can read something does not show that the model uses it.",
    ]
    incomplete = [c.name for c in findings.curves if bool(c.table("folds")["at_edge"].any())] if findings.curves else []
    if incomplete:
        words.append(
            f"In {', '.join(incomplete[:4])} the best strength is the grid's largest at some layers: stronger ones may score better."
        )
    return [Remark(text) for text in words]
