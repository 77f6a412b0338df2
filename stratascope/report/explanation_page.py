"""Page of one example: the answer, every attribution method, knockout effects and logit attribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.example_images import picture, relative_boxes
from stratascope.analysis.knockout_targets import MODE_LABELS
from stratascope.figures.attributions import draw_sum
from stratascope.figures.drawing import new_figure
from stratascope.figures.style import paper_style
from stratascope.report.blocks import (
    Beside,
    Block,
    Card,
    Cards,
    ColourScale,
    Drawing,
    Fact,
    Facts,
    Missing,
    Picture,
    Prose,
    Remark,
    Section,
    Table,
    Tokens,
)
from stratascope.report.page import Page

if TYPE_CHECKING:
    from stratascope.analysis import ExampleExplanation
    from stratascope.store import ActivationStore

MODES = {mode: MODE_LABELS[mode] for mode in ("later", "final")}
"""Modes of the knockout, in the order of the page."""
PART_NAMES = {"caption_rest": "rest of caption", "subject_box": "subject box", "object_box": "object box"}
NAMED = 8
"""Components in the table."""


def write_explanation(explanation: ExampleExplanation, store: ActivationStore, out: Path) -> Path:
    """Write the page of one example and return its path."""
    number = int(explanation.attributes["example"])
    return explanation_page(explanation, picture(store, number), relative_boxes(store, [number])[0], name=store.name).write(out)


def explanation_page(
    found: ExampleExplanation, image: NDArray[np.uint8], boxes: Mapping[str, Sequence[float]], *, name: str = "the store"
) -> Page:
    """The page of one example."""
    own = found.attributes
    sections = [
        Section("The answer", _answer(found, image, boxes), "answer"),
        Section("Attribution methods", _methods(found, image, boxes), "methods"),
        Section("Attribution by part of the prompt", _parts(found), "parts"),
        Section("Direct logit attribution", _components(found), "sum"),
    ]
    if (found.tokens["cut"] != "").any():
        sections.append(Section("Cuts that limit attention flow", _limits(found), "flow"))
    return Page(
        own["caption"],
        sections,
        subtitle=f"example {own['example']} ({own['id']}) of {Path(name).name}, condition {own['condition']}",
        footer=f"Made by stratascope from the store of fingerprint {own['store'][:16]}.",
    )


def _answer(found: ExampleExplanation, image: NDArray[np.uint8], boxes: Mapping[str, Sequence[float]]) -> list[Block]:
    own = found.attributes
    rows = found.answers.set_index("choice")
    right = {True: "correct", False: "wrong", None: "the label names no choice"}[own["right"]]
    first, second = found.answers["choice"].iloc[:2]
    facts = [
        Fact(own["answer"], "answer of the model", f"probability {rows.loc[own['answer'], 'probability']:.1%} among the choices; {right}"),
        Fact({0: "false", 1: "true"}.get(own["label"], "unknown"), "label of the caption", f"relation: {own['relation']}"),
        Fact(f"{own['difference']:+.2f}", f"logit({first}) − logit({second})", "at the final token"),
    ]
    alt = f"the image, with the boxes of {' and '.join(boxes)}" if boxes else "the image"
    return [Beside([Picture(image, alt, boxes=boxes), Facts(facts)])]


def _methods(found: ExampleExplanation, image: NDArray[np.uint8], boxes: Mapping[str, Sequence[float]]) -> list[Block]:
    own = found.attributes
    blocks: list[Block] = []
    cards = []
    agreement = found.agreement[found.agreement["kind"] == "cells"].set_index(["method", "mode"])["correlation"]
    for mode in (m for m in MODES if m in set(found.knockout["mode"])):
        effects = np.abs(np.nan_to_num(found.effects_on_image(mode))) if own["grid"][0] else None
        largest = found.knockout[(found.knockout["kind"] == "cells") & (found.knockout["mode"] == mode)]["effect"].abs().max()
        caption = f"change of the logit difference when a cell is {MODES[mode]}, all blocks; largest {largest:.2f}"
        shown = Picture(image, f"knockout effect of each cell, {MODES[mode]}", effects, boxes, caption=caption)
        cards.append(Card(MODES[mode], [shown, _coloured_spans(found, mode)], badge="measured", good=True))
    first, last = own["few"]
    for method in found.methods:
        label = own["methods"][method].replace("few blocks", f"blocks {first} to {last - 1}")
        cells = found.on_image(method) if own["image"][0] >= 0 and own["grid"][0] else None
        scores = found.tokens[method].to_numpy(float).copy()
        scores[-1] = np.nan  # what the final token gives itself would outshine the text
        note = ""
        if method.startswith("flow") and cells is not None:
            cells, note = cells - cells.min(), "no colour: the lowest cell; "
            scores = scores - np.nanmin(scores)
        with_sign = method in own["signed"]
        if with_sign:
            note = f"orange favours {found.answers['choice'][0]}, purple {found.answers['choice'][1]}; "
        told = [f"{agreement[method, mode]:+.2f} ({MODES[mode]})" for mode in MODES if (method, mode) in agreement.index]
        caption = note + (f"rank correlation with knockout effects: {', '.join(told)}" if told else "")
        inner: list[Block] = []
        if cells is not None:
            inner.append(Picture(image, f"{label}, laid over the image", cells, boxes, caption=caption.rstrip("; "), signed=with_sign))
        inner.append(_coloured_text(found, scores, with_sign))
        cards.append(Card(label, inner))
    if cards:
        blocks.append(
            Prose(
                "Each card colours image cells and prompt tokens by the score of one method. Attention is not "
                "information flow: a method is faithful if it ranks the cells as the knockout effects do.",
            )
        )
        blocks.append(ColourScale("0", "largest score of the image, or of the prompt"))
        blocks.append(Cards(cards))
    for method, arrays in own["missing"].items():
        blocks.append(Missing(f"Not shown: {method}; extract with", f"--record {arrays}"))
    if found.knockout.empty:
        what = "No knockout effects of this example; extract with"
        blocks.append(Missing(what, "--record knockout --knockouts N"))
    return blocks


def _coloured_text(found: ExampleExplanation, scores: NDArray[np.float64], signed: bool = False) -> Tokens:
    """Text of the prompt, with all image tokens as one."""
    texts: list[str] = []
    values: list[float] = []
    inside = (found.tokens["part"] == "image").to_numpy()
    for k, text in enumerate(found.tokens["text"]):
        if not inside[k]:
            texts.append(text)
            values.append(float(scores[k]))
        elif k == 0 or not inside[k - 1]:
            texts.append(f" ⟨{int(inside.sum())} image tokens⟩ ")
            values.append(float("nan"))
    return Tokens(texts, np.array(values), signed=signed)


def _coloured_spans(found: ExampleExplanation, mode: str) -> Tokens:
    """Text of the prompt, each part coloured by its knockout effect."""
    table = found.knockout[(found.knockout["kind"] == "spans") & (found.knockout["mode"] == mode)]
    table = table[table["window"] == found.knockout["window"].iloc[0]]
    effects = table.set_index("target")["effect"].abs()
    scores = found.tokens["part"].map(effects).to_numpy(float).copy()
    scores[-1] = np.nan
    return _coloured_text(found, scores)


def _parts(found: ExampleExplanation) -> list[Block]:
    if found.spans.columns.size <= 2:
        return [Missing("The store holds no attention; extract with", "--record attention_rows,attention_maps")]
    table = found.spans[["part", "tokens", *found.methods]].copy()
    labels = {name: found.attributes["methods"][name] for name in found.methods}
    hidden = found.knockout[found.knockout["window"] == found.knockout["window"].iloc[0]] if len(found.knockout) else found.knockout
    for mode in (m for m in MODES if m in set(hidden["mode"])):
        effects = hidden[hidden["mode"] == mode].set_index("target")["effect"]
        table[f"knockout effect, {MODES[mode]}"] = table["part"].map(effects)
    columns = ["part", "tokens", *(labels.get(name, name) for name in table.columns[2:])]
    rows = [[PART_NAMES.get(str(row[0]), row[0]), *row[1:]] for row in table.itertuples(index=False, name=None)]
    note = (
        "Attention: share of the part, mean over blocks and heads. Attribution and knockout effects: logits, positive towards the first "
        "choice. Flow into a part is not the sum of the flows into its tokens; at 1 it is saturated. Boxes are parts of the image."
    )
    return [Table(columns, rows, caption=note)]


def _components(found: ExampleExplanation) -> list[Block]:
    table = found.components
    if table.empty:
        return [Missing("No logit attribution; extract with", "--record head_logits,value_logits")]
    first, second = found.answers["choice"].iloc[:2]
    difference = found.attributes["difference"]
    blocks: list[Block] = []
    whole = (table["component"] == "embedding").any()
    if whole:
        start = float(table.loc[table["component"] == "embedding", "value"].iloc[0])
        layers = sorted(set(table.loc[table["layer"] >= 0, "layer"]))
        steps = [(str(layer), _added(table, layer, "head"), _added(table, layer, "block")) for layer in layers]
        figure, (ax,) = new_figure(1, width=min(7.0, 2.6 + 0.42 * len(layers)), height=2.6)
        with paper_style():
            draw_sum(steps, ax, start=start, ends=(first, second))
        off = abs(difference - float(table["value"].sum()))
        total = float(table["value"].sum())
        text = f"Sum of all {len(table)} terms: {total:+.3f}; logit difference of the model: {difference:+.3f} (error {off:.0e})."
        blocks.append(Drawing(figure, f"contribution of each decoder block to the logit difference of {difference:+.2f}", caption=text))
    else:
        blocks.append(Remark("The store lacks the contributions of MLPs and embedding (mlp_logits, embedding_logits): no sum."))
    top = table.reindex(table["value"].abs().sort_values(ascending=False, kind="stable").index).head(NAMED)
    names = {"embedding": "embedding", "head": "head {head} of block {layer}", "block": "MLP and biases of block {layer}"}
    told = top[["component", "layer", "head", "value"]].itertuples(index=False, name=None)
    rows = [[names[kind].format(head=head, layer=layer), float(value), first if value > 0 else second] for kind, layer, head, value in told]
    blocks.append(Table(["component", "logits", "favours"], rows, title="Largest terms"))
    return blocks


def _added(table: pd.DataFrame, layer: int, component: str) -> float:
    return float(table.loc[(table["layer"] == layer) & (table["component"] == component), "value"].sum())


def _limits(found: ExampleExplanation) -> list[Block]:
    from stratascope.stats.rank_correlation import rank_correlation

    own = found.attributes
    first, last = own["few"]
    rows: list[list[Any]] = []
    for name, column in (("all blocks", "cut"), (f"blocks {first} to {last - 1}", "cut_window")):
        counts = found.tokens[column].iloc[:-1].value_counts()
        rows.append([name, *(int(counts.get(cut, 0)) for cut in ("source", "target", "other"))])
    scores = found.tokens["flow"].to_numpy(float)[:-1]
    along = rank_correlation(scores, np.arange(len(scores), dtype=float))
    text = f"Rank correlation of flow through all blocks with the token's position: {along:.2f}."
    warning = [Remark(f"{text} Flow follows the position alone.")] if abs(along) > 0.9 else [Prose(text)]
    columns = ["flow through", "cut at the final token", "cut at the source token", "other cut"]
    return [*warning, Table(columns, rows, caption="Number of tokens by the minimum cut that limits their flow.")]
