"""Overlap with boxes and the ranking of heads as commands do them: computed, saved, drawn, and said in a few words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.figures.heatmaps import draw_heads
from stratascope.figures.predictions import draw_overlap, draw_prediction
from stratascope.report import new_figure, paper_style, save_figure
from stratascope.results.collection import other_store
from stratascope.results.file import ResultFile, load_result
from stratascope.results.locations import ENDING
from stratascope.results.view import Found
from stratascope.store import choice_of, choice_options, choice_text, chosen_examples
from stratascope.workflow.telling import file_name, part_lines, result_path, titled, told

if TYPE_CHECKING:
    from stratascope.analysis import AnswerPrediction, BoxOverlap, HeadRanking
    from stratascope.store import ActivationStore

SAID = 5
"""Heads that are named."""
EVEN = {"lift": 1.0, "auc": 0.5}
MEASURES = {
    "share": "share within both boxes",
    "lift": "lift within both boxes",
    "cosine": "cosine with both boxes",
    "auc": "AUC of both boxes",
}


def overlap_and_draw(
    store: ActivationStore,
    folder: Path,
    *,
    weighing: str = "attention",
    measure: Any = "lift",
    only: Sequence[str] = (),
    seed: int = 0,
    scheduler: str | None = None,
) -> str:
    """Overlap of every head's look at the image with the boxes, and whether it predicts a right answer: saved, drawn, and said.

    Raises
    ------
    NotRecordedError
        If none of the examples has both boxes.
    """
    from stratascope.analysis import answer_prediction, attention_overlap
    from stratascope.analysis.overlap import known_boxes

    found = attention_overlap(store, weighing=weighing, measure=measure, only=only, scheduler=scheduler)
    known = int(known_boxes(found, "both").sum())
    which = (None if weighing == "attention" else weighing, *only)
    found.save(result_path(folder, "overlap", *which))
    means = found.mean("both")
    layer, head = np.unravel_index(int(np.nanargmax(means)), means.shape)
    where = f"block {found.attributes['layers'][int(layer)]} head {int(head)}"
    lines = [
        *part_lines(store, only, len(found.examples)),
        f"{weighing} on the boxes of subject and object, {known} of {len(found.examples)} examples have both; {measure} averages "
        f"{np.nanmean(means):.2f} over heads, most in {where}: {means[layer, head]:.2f}",
    ]
    prediction: AnswerPrediction | None = None
    try:
        prediction = answer_prediction(store, found, seed=seed)
    except TooFewExamplesError as error:
        lines.append(f"not asked whether it predicts a right answer: {error}")
        stale = result_path(folder, "prediction", *which)
        if stale.exists():  # of an earlier run: it would be shown beside an overlap that it is not of
            stale.unlink()
            lines.append(f"removed {stale.name}, which an earlier run had made")
    if prediction is not None:
        prediction.save(result_path(folder, "prediction", *which))
        lines.append(prediction_text(prediction))
    path = draw_overlaps(found, prediction, folder / f"{file_name('overlap', *which)}.png")
    return told(folder, lines, [path])


def prediction_text(found: AnswerPrediction) -> str:
    """The best head and whether it says more than the boxes alone."""
    best, base = found.best, found.baseline
    more = "more than" if best["advantage_low"] > 0 else "no more, as far as can be told, than"
    return (
        f"AUROC for a right answer: block {int(best['layer'])} head {int(best['head'])} {best['auroc']:.3f} "
        f"[{best['low_simultaneous']:.3f}, {best['high_simultaneous']:.3f}] (the best of {len(found.table)} heads, allowed for), "
        f"the boxes' geometry alone {base['auroc']:.3f} [{base['low']:.3f}, {base['high']:.3f}]: {more} the geometry"
    )


def draw_overlaps(found: BoxOverlap, prediction: AnswerPrediction | None, path: Path) -> Path:
    """Head by layer, overlap by layer and, where there is one, its AUROC for a right answer."""
    means, layers = found.mean("both"), found.attributes["layers"]
    measure = found.attributes["measure"]
    columns = 2 + (prediction is not None)
    figure, axes = new_figure(columns, width=3.1 * columns, height=2.7)
    with paper_style():
        draw_heads(means, layers, axes[0], label=MEASURES[measure])
        draw_overlap(means, layers, axes[1], label=MEASURES[measure], even=EVEN.get(measure))
        if prediction is not None:
            draw_prediction(prediction.table, prediction.baseline, axes[2])
        if only := choice_of(found.attributes):
            figure.suptitle(f"only {choice_text(only)}")
    return save_figure(figure, path)


def rank_and_draw(
    store: ActivationStore, folder: Path, *, probe: Path | None = None, only: Sequence[str] = (), scheduler: str | None = None
) -> str:
    """Heads ranked by attribution, overlap and probe, as far as store and results give them: saved, drawn, and said.

    Raises
    ------
    InvalidInputError
        If they give none of them, or the probe is of another store.
    """
    from stratascope.analysis import attention_overlap, logit_attribution, rank_heads
    from stratascope.errors import NotRecordedError

    given = None if probe is None else load_result(probe)
    if probe is not None and given is not None and (found := Found(probe, given)).fingerprint != store.fingerprint():
        raise other_store(found, store)
    lacking = []
    attribution, overlap = None, None
    try:
        attribution = logit_attribution(store, only=only, by_part=False)
    except NotRecordedError as error:
        lacking.append(f"no attribution: {error}")
    try:
        overlap = attention_overlap(store, measure="lift", only=only, scheduler=scheduler)
    except NotRecordedError as error:
        lacking.append(f"no overlap: {error}")
    result = given or head_probe_of(folder, store, only)
    if result is None:
        command = f"stratascope probe STORE --array head_outputs{choice_options(only)}"
        lacking.append(f"no probe by head: run `{command}` first, or give its result with --probe")
    if attribution is None and overlap is None and result is None:
        raise InvalidInputError(f"expected at least one score of heads, found none: {'; '.join(lacking)}")
    ranking = rank_heads(attribution, overlap, result)
    name = file_name("heads", *only)
    ranking.save(result_path(folder, name))
    path = draw_ranking(ranking, folder / f"{name}.png")
    about = part_lines(store, only, int((chosen_examples(store, only) & store.available("answer_logits")).sum()))
    return told(folder, [*about, ranking_text(ranking), *lacking], [path])


def head_probe_of(folder: Path, store: ActivationStore, only: Sequence[str] = ()) -> ResultFile | None:
    """The first result in a folder that holds a probe of this store and these examples by head."""
    from stratascope.analysis.head_ranking import probe_grid

    for path in sorted(folder.glob(f"*{ENDING}")):
        result = load_result(path)
        about = result.attributes
        own = (about.get("fingerprint"), about.get("store"), about.get("settings", {}).get("fingerprint"))
        if about.get("array") == "head_outputs" and store.fingerprint() in own and set(choice_of(about)) == set(only):
            try:
                probe_grid(result)
            except InvalidInputError:
                continue
            return result
    return None


def ranking_text(found: HeadRanking) -> str:
    """The best heads with their scores, and how far the scores agree."""
    names = list(found.attributes["scores"])
    lines = [f"heads by {', '.join(f'{name} ({about})' for name, about in found.attributes['scores'].items())}; ranks in brackets"]
    for row in found.table.head(SAID).to_dict("records"):
        scores = ", ".join(f"{name} {row[name]:.3g} ({row[f'{name}_rank']:g})" for name in names)
        lines.append(f"  block {row['layer']} head {row['head']}: {scores}")
    for row in found.agreement.to_dict("records"):
        lines.append(
            f"agreement of {row['first']} and {row['second']}: {row['spearman']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] over "
            f"{row['heads']} heads; of the best tenth {row['shared_tenth']:.0%} are the same"
        )
    return "\n".join(lines)


def draw_ranking(found: HeadRanking, path: Path) -> Path:
    """One grid of heads by layer for each score."""
    scores = found.attributes["scores"]
    figure, axes = new_figure(len(scores), width=3.1 * len(scores), height=2.7)
    with paper_style():
        for (name, about), ax in zip(scores.items(), axes, strict=True):
            title = titled(name, choice_of(found.attributes))
            draw_heads(found.grid(name), found.attributes["layers"], ax, label=about, diverging=name == "attribution", title=title)
    return save_figure(figure, path)
