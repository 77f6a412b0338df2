"""Headline of a report: detected layers, peak and advantages in sentences whose numbers cite a results file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from stratascope.figures.drawing import metric_name
from stratascope.probe.curve.claims import LayerClaims, band_text
from stratascope.probe.curve.metrics import best_row
from stratascope.report.blocks import Block, Cited, Fact, Facts, Prose
from stratascope.report.figure_drawing import baseline_label, baseline_list, score_of
from stratascope.report.result_set import ResultSet, in_caption_text
from stratascope.report.task_words import POSITION_WORDS, task_words
from stratascope.results.layer_intervals import LayerIntervals
from stratascope.results.stored_result import Source, StoredResult


def headline(results: ResultSet) -> list[Block]:
    """Detected layers, peak and advantages of the leading curve, the other positions, and the accuracy of the model."""
    blocks: list[Block] = []
    tiles: list[Fact] = []
    if results.curves:
        curve = leading_curve(results)
        claim = _claim(results, curve)
        blocks.append(Prose([*_detection(curve, claim), *_peak(curve)], lead=True))
        tiles += _curve_tiles(curve, claim)
        advantages = results.saved_advantages(curve)
        # the advantage over the best baseline is the claim; those over single baselines follow in sentences
        blocks += [Prose(_advantage(curve, found, results)) for found in advantages if found is not claim]
        tiles += [_advantage_tile(curve, found) for found in ([claim] if claim is not curve else advantages)]
        blocks += [Prose(words) for words in (_other_positions(results, curve), _in_caption(results)) if words]
    answers = results.of("answer_confidence")
    if answers:
        row = answers[0].table("confidence").iloc[0]
        source = answers[0].source("tables/confidence", "all relations")
        right = Cited(percent(row["accuracy"]), float(row["accuracy"]), source)
        ends = _ends(row["accuracy_low"], row["accuracy_high"], answers[0], "all relations", table="tables/confidence")
        who = "With untrained weights the model answers " if answers[0].condition.startswith("untrained") else "The model answers "
        blocks.append(Prose([who, right, *ends, " of the examples correctly."]))
        tiles.append(Fact(right, "accuracy of the model's answers", ends))
    return [*blocks[:1], Facts(tiles), *blocks[1:]] if tiles else blocks


def leading_curve(results: ResultSet) -> StoredResult:
    """The curve of the headline: of the first task whose labels the caption does not state, at its best position.

    The best position has the highest simultaneous lower bound of the advantage over the best baseline, where that is known, else over
    chance.
    """
    candidates = [c for c in results.curves if not in_caption_text(c)] or results.curves

    def strength(curve: StoredResult) -> tuple[bool, float]:
        claim = _claim(results, curve)
        return claim is not curve, float(_claims(claim).bands.low_simultaneous.max())

    return max((c for c in candidates if c.task == candidates[0].task), key=strength)


def peak(curve: StoredResult, metric: str | None = None) -> pd.Series[Any]:
    """Row of a curve's best layer; the first of equal ones."""
    metric = metric or score_of(curve)
    return best_row(curve.rows(metric), metric)


def signed(number: str) -> str:
    """A number's text with a minus sign in place of a hyphen."""
    return number.replace("-", "−")


def asked(results: ResultSet) -> str:
    """End of the title "In which layers ..."."""
    if not results.curves:
        return "a spatial relation is encoded"
    return f"{task_words(leading_curve(results).task)} is encoded"


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f} %"


def _claim(results: ResultSet, curve: StoredResult) -> StoredResult:
    """The saved advantage of a curve over the best baseline; the curve itself, whose claims are over chance, where there is none."""
    return next((f for f in results.saved_advantages(curve) if "of" in (f.attributes.get("baseline") or {})), curve)


def _claims(found: StoredResult) -> LayerClaims:
    claims: LayerClaims = found.result.claims
    return claims


def _several(curve: StoredResult) -> bool:
    """Whether a curve has more than one layer."""
    return curve.table("table")["layer"].nunique() > 1


def _where(curve: StoredResult) -> str:
    return POSITION_WORDS.get(curve.position, f"at {curve.position}" if curve.position else "")


def _detection(curve: StoredResult, claim: StoredResult) -> list[str | Cited]:
    """Sentences on the layers in which a curve's claim is detected or absent."""
    what, claims = task_words(curve.task), _claims(claim)
    begin = f"{what[:1].upper()}{what[1:]} "
    by = " by a nonlinear probe" if curve.attributes.get("nonlinear") else ""
    count, band = f"n = {len(curve.file.tables['examples']):,}", claim.result.band_text if claim is not curve else curve_band(curve)
    over = f"above {baseline_list(claim)}, {band}"
    if not claims.detected:
        words: list[str | Cited] = [
            begin,
            "is ",
            Cited("not detected", -1, claim.source("tables/events", "onset")),
            f"{by} {_where(curve)} {_anywhere(claims)} ({count}",
        ]
        chance = _claims(curve).detected
        source = curve.source("tables/table", "layers above chance")
        alone = ["Above chance alone it is detected in ", *_layer_words(chance, source), ". "] if claim is not curve and chance else []
        return [*words, *_detectable(claim, claims), f"; {over}). ", *alone, *_absent_everywhere(claim, claims)]
    layers = _layer_words(claims.detected, claim.source("tables/table", "layers whose simultaneous lower bound exceeds the margin"))
    margin = f" by more than {claims.onset.margin:g}" if claims.onset.margin else ""
    return [
        begin,
        f"is detected{margin}{by} {_where(curve)} in ",
        *layers,
        f" ({count}; {over}). ",
        *_start(claim, claims),
        *_end(claim, claims),
    ]


def _layer_words(found: LayerIntervals, source: Source) -> list[str | Cited]:
    """Layers as text with each end cited, such as `layers 2-4 and 8-9`."""
    words: list[str | Cited] = ["layer " if len(found.layers) == 1 else "layers "]
    for number, (first, last) in enumerate(found):
        joint = "" if number == 0 else " and " if number == len(found) - 1 else ", "
        words += [joint] if joint else []
        words += [Cited(str(first), first, source)]
        words += [] if first == last else ["–", Cited(str(last), last, source)]
    return words


def _detectable(claim: StoredResult, claims: LayerClaims) -> list[str | Cited]:
    """The minimum detectable effect of a null result, if its file holds it."""
    if len(claims.absent.layers) == len(claims.layers) or not np.isfinite(claims.detectable):
        return []
    if claims.power.startswith("not even"):
        return [f"; {claims.power} would have been detected with 80 % power"]
    name, _, number = claims.amount(claims.detectable, "of at least ").rpartition(" ")
    table = claim.table("events")
    held = "minimum_detectable_effect" in table
    source = claim.source("tables/events", "minimum detectable effect over the baseline")
    return [f"; {name} ", Cited(number, float(claims.detectable), source) if held else number, " would have been detected with 80 % power"]


def _absent_everywhere(claim: StoredResult, claims: LayerClaims) -> list[str | Cited]:
    which = "this" if len(claims.layers) == 1 else "every"
    return [f"In {which} layer, {claims.most}. "] if len(claims.absent.layers) == len(claims.layers) else []


def _anywhere(claims: LayerClaims) -> str:
    return "in any layer" if len(claims.layers) > 1 else f"in the only layer probed, layer {claims.layers[0]}"


def _start(claim: StoredResult, claims: LayerClaims) -> list[str | Cited]:
    """The interval of the first layer above the equivalence margin; nothing for a single layer."""
    event, first = claims.onset, int(claims.layers[0])
    if len(claims.layers) == 1 or event.low is None or event.low == event.high == first:
        return []
    if event.high is None:
        return [f"In no layer is the {claims.amount(float(event.equivalence_margin or 0), 'significantly above ')}. "]
    source = claim.source("tables/events", "interval of the onset")
    low, high = (Cited(str(end), end, source) for end in (event.low, event.high))
    where: list[str | Cited] = ["at layer ", low] if event.low == event.high else ["in one of layers ", low, "–", high]
    return [f"The {claims.amount(float(event.equivalence_margin or 0), 'is first above ')} ", *where, ". "]


def _end(claim: StoredResult, claims: LayerClaims) -> list[str | Cited]:
    """What holds after the last detected layer: still detected, absent, or not decided; nothing for a single layer."""
    if len(claims.layers) == 1:
        return []
    source = claim.source("tables/events", "offset")
    if claims.offset.layer is not None:
        layer = Cited(f"layer {claims.offset.layer}", claims.offset.layer, source)
        return ["From ", layer, f" on, {claims.most}. "]
    if claims.offset.decided:
        return ["It is still detected in the ", Cited("last layer", -1, source), ". "]
    after = _layer_words(claims.after, claim.source("tables/table", "layers after the last one detected"))
    return ["Whether it is still decodable in ", *after, " cannot be decided with this number of examples. "]


def _other_positions(results: ResultSet, curve: StoredResult) -> list[str | Cited]:
    """One clause for each other position of the task."""
    others = [c for c in results.curves if c.task == curve.task and c is not curve and not in_caption_text(c)]
    words: list[str | Cited] = []
    for other in others:
        claim = _claim(results, other)
        claims = _claims(claim)
        words += ["; " if words else "The same label at the other positions: ", f"{_where(other)} "]
        if claims.detected:
            words += ["detected in ", *_layer_words(claims.detected, claim.source("tables/table", "detected layers"))]
        else:
            words += ["not detected", *_detectable(claim, claims)]
    return [*words, "."] if words else []


def _in_caption(results: ResultSet) -> list[str | Cited]:
    """Curves whose labels the caption states, which are not findings."""
    trivial: dict[str, list[str]] = {}
    for curve in results.curves:
        if in_caption_text(curve):
            trivial.setdefault(task_words(curve.task), []).append(curve.position)
    if not trivial:
        return []
    listed = "; ".join(f"{words} at {', '.join(places)}" for words, places in trivial.items())
    return [f"Not a finding, because the caption states the label before the position: {listed}."]


def curve_band(curve: StoredResult) -> str:
    """Name of the simultaneous band of a curve."""
    return band_text(float(curve.attributes.get("level", 0.95)), curve.attributes.get("family"))


def _peak(curve: StoredResult) -> list[str | Cited]:
    row, metric = peak(curve), score_of(curve)
    which = f"{metric} at layer {row['layer']}"
    probe = "The best probe, at " if _several(curve) else "The probe, at "
    ends = _ends(row["low_simultaneous"], row["high_simultaneous"], curve, f"{which}, simultaneous", metric)
    best = Cited(_score(row["value"], metric), float(row["value"]), curve.source("tables/table", which))
    layer = Cited(f"layer {row['layer']}", int(row["layer"]), curve.source("tables/table", which))
    if metric == "r2":
        return [probe, layer, ", explains ", best, *ends, " of the variance (R²)."]
    chance = Cited(_score(row["chance"], metric), float(row["chance"]), curve.source("tables/table", f"{which}, chance"))
    return [probe, layer, f", has {_article(metric)} ", best, *ends, "; chance level ", chance, "."]


def _advantage(curve: StoredResult, found: StoredResult, results: ResultSet) -> list[str | Cited]:
    over = found.attributes.get("baseline") or {}
    control = str(over.get("task", "")).partition(":")[2]
    metric, row = str(found.table("table")["metric"].iloc[0]), _at_peak(curve, found)
    gained = _gain(found, row, metric)
    detected, source = _claims(found).detected, found.source("tables/table", "layers whose simultaneous lower bound exceeds the margin")
    real = [" (detected in ", *_layer_words(detected, source), ")"] if detected else [" (", Cited("not detected", -1, source), ")"]
    if "of" in over:
        none = "" if detected else ", so there is no evidence beyond the baselines"
        return [
            f"The advantage over the best baseline{' of each layer' if _several(curve) else ''} is, at layer {row['layer']}, ",
            *gained,
            *real,
            f"{none}.",
        ]
    other = results.controls_of(curve) if control else results.baselines_of(curve)
    words: list[str | Cited] = []
    for baseline in other:
        if (baseline.task.partition(":")[2] != control) if control else (baseline.condition != over.get("condition")):
            continue
        rows = baseline.rows(metric)["value"]
        ends = [
            Cited(_score(value, metric), float(value), baseline.source("tables/table", f"{end} {metric} over layers"))
            for end, value in (("lowest", rows.min()), ("highest", rows.max()))
        ]
        range_of = [ends[0]] if ends[0].text == ends[1].text else [ends[0], " to ", ends[1]]
        words += [f"With {baseline_label(found)} the same probe scores ", *range_of, " over all layers. " if _several(curve) else ". "]
    words += [f"At layer {row['layer']} the advantage over {baseline_label(found)} is ", *gained, *real]
    if control:
        return [*words, "."]
    verdict = ": the probe uses information from the image." if detected else ": an advantage from the image is not detected."
    return [*words, verdict if over.get("condition") == "blank" else "."]


def _at_peak(curve: StoredResult, found: StoredResult) -> pd.Series[Any]:
    layer = int(peak(curve)["layer"])
    table = found.table("table")
    return table[table["layer"] == layer].iloc[0]


def _gain(found: StoredResult, row: pd.Series[Any], metric: str) -> list[str | Cited]:
    which = f"layer {row['layer']}"
    points = metric in ("accuracy", "balanced_accuracy")
    scale, unit = (100, " points") if points else (1, "")
    value, low, high = (float(row[name]) for name in ("value", "low_simultaneous", "high_simultaneous"))
    digits = 1 if points else 2
    shown = Cited(signed(f"{scale * value:+.{digits}f}{unit}"), value, found.source("tables/table", which))
    source = found.source("tables/table", f"{which}, simultaneous")
    return [
        shown,
        " [",
        Cited(signed(f"{scale * low:.{digits}f}"), low, source),
        ", ",
        Cited(signed(f"{scale * high:.{digits}f}"), high, source),
        "]",
    ]


def _curve_tiles(curve: StoredResult, claim: StoredResult) -> list[Fact]:
    detected, row, metric = _claims(claim).detected, peak(curve), score_of(curve)
    where = f"{curve.task} {_where(curve)}".strip()
    source = claim.source("tables/events", "onset")
    first = Cited(f"layer {min(detected.layers)}", min(detected.layers), source) if detected else Cited("none", -1, source)
    which = f"{metric} at layer {row['layer']}"
    best = Cited(_score(row["value"], metric), float(row["value"]), curve.source("tables/table", which))
    ends = _ends(row["low_simultaneous"], row["high_simultaneous"], curve, f"{which}, simultaneous", metric)
    count = f"n = {len(curve.file.tables['examples']):,}"
    return [
        Fact(first, f"{'first layer' if _several(curve) else 'layer'} detected ({count}): {where}", []),
        Fact(best, f"{metric_name(metric)} of the {'best ' if _several(curve) else ''}probe, layer {row['layer']}", ends),
    ]


def _advantage_tile(curve: StoredResult, found: StoredResult) -> Fact:
    metric = str(found.table("table")["metric"].iloc[0])
    gained = _gain(found, _at_peak(curve, found), metric)
    first = gained[0]
    assert isinstance(first, Cited)
    first = replace(first, text=first.text.removesuffix(" points"))
    over = found.attributes.get("baseline") or {}
    unit = "percentage points" if metric in ("accuracy", "balanced_accuracy") else metric_name(metric)
    selective = "selectivity: " if str(over.get("task", "")).endswith((":control", ":shuffled")) else ""
    return Fact(first, f"{selective}{unit} over {baseline_label(found)}", gained[1:])


def _ends(
    low: float, high: float, found: StoredResult, which: str, metric: str = "accuracy", *, table: str = "tables/table"
) -> list[str | Cited]:
    source = found.source(table, which)
    cited = [Cited(_score(end, metric).removesuffix(" %"), float(end), source) for end in (low, high)]
    return [" [", cited[0], ", ", cited[1], "]"]


def _article(metric: str) -> str:
    name = metric_name(metric)
    return f"{'an' if name[0] in 'aA' else 'a'} {name} of"


def _score(value: float, metric: str) -> str:
    return percent(float(value)) if metric in ("accuracy", "balanced_accuracy") else signed(f"{value:.2f}")
