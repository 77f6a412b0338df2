"""Headline of a report: onset, peak, offset and advantages in sentences whose numbers cite a results file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from stratascope.figures.drawing import METRIC_LABELS
from stratascope.report.blocks import Block, Cited, Fact, Facts, Prose
from stratascope.report.figure_drawing import baseline_label, score_of
from stratascope.report.result_set import ResultSet
from stratascope.results.stored_result import StoredResult

TASK_WORDS = {
    "truth": "the truth of the caption",
    "relation": "the relation in the caption",
    "answer": "the answer of the model",
    "category": "the category of the relation",
    "geometry": "the boxes of subject and object",
}
"""Task -> what its probe decodes."""
POSITION_WORDS = {
    "final": "at the final token",
    "subject": "at the last token of the subject",
    "relation": "at the last token of the relation",
    "object": "at the last token of the object",
    "image": "in the mean over the image tokens",
    "subject_box": "in the image tokens within the subject box",
    "object_box": "in the image tokens within the object box",
}
METRIC_NAMES = {name: label if label.isupper() else label.lower() for name, label in METRIC_LABELS.items()}
"""Metric -> its name within a sentence."""


def task_words(task: str) -> str:
    """What a probe for a task decodes; the selection of examples follows in parentheses."""
    name, _, chosen = task.partition(" (")
    words = TASK_WORDS.get(name, f"the value of “{name}”")
    return f"{words} (only {chosen.removesuffix(')')})" if chosen else words


def headline(results: ResultSet) -> list[Block]:
    """Onset, peak and offset of the first curve, key numbers, advantages over baselines, and the accuracy of the model.

    The first curve is truth at the final token where there is one, else the first by task and position.
    """
    blocks: list[Block] = []
    tiles: list[Fact] = []
    if results.curves:
        curve = results.curves[0]
        blocks.append(Prose([*_onset(curve), *_peak(curve), *_offset(curve)], lead=True))
        tiles += _curve_tiles(curve)
        advantages = results.saved_advantages(curve)
        blocks += [Prose(_advantage(curve, found, results)) for found in advantages]
        # the advantage over the best baseline is the claim; those over single baselines follow in sentences
        claims = [found for found in advantages if "of" in (found.attributes.get("baseline") or {})]
        tiles += [_advantage_tile(curve, found) for found in claims or advantages]
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


def peak(curve: StoredResult, metric: str | None = None) -> pd.Series[Any]:
    """Row of a curve's best layer; the first of equal ones."""
    rows = curve.rows(metric or score_of(curve))
    return rows.iloc[int(rows["value"].to_numpy().argmax())]


def signed(number: str) -> str:
    """A number's text with a minus sign in place of a hyphen."""
    return number.replace("-", "−")


def asked(results: ResultSet) -> str:
    """End of the title "In which layers ..."."""
    if not results.curves:
        return "a spatial relation is encoded"
    return f"{task_words(results.curves[0].task)} is encoded"


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f} %"


def _onset(curve: StoredResult) -> list[str | Cited]:
    what = task_words(curve.task)
    where = POSITION_WORDS.get(curve.position, f"at {curve.position}" if curve.position else "")
    event = curve.event("onset")
    metric = METRIC_LABELS.get(str(event["metric"]), str(event["metric"]))
    source = curve.source("tables/events", f"onset of {metric} over chance")
    begin = f"{what[:1].upper()}{what[1:]} "
    if not event["found"]:
        count = len(curve.file.tables["examples"])
        return [
            begin,
            f"is not detected {where} in ",
            Cited("any layer", -1, source),
            f": no probe is significantly above chance (n = {count:,}). ",
        ]
    layer = Cited(f"layer {event['layer']}", int(event["layer"]), source)
    return [
        begin,
        f"is decodable {where} from ",
        layer,
        " on",
        *_layers(event, curve),
        "; no earlier probe is significantly above chance. ",
    ]


def _layers(event: pd.Series[Any], curve: StoredResult) -> list[str | Cited]:
    low, high = int(event["low"]), int(event["high"])
    source = curve.source("tables/events", f"interval of the {event['kind']}")
    if low < 0 or high < 0:
        return []
    level = f"{100 * float(event['level']):.0f} % CI"
    if low == high:
        return [f" ({level}: layer ", Cited(str(low), low, source), " only)"]
    return [f" ({level}: layers ", Cited(str(low), low, source), " to ", Cited(str(high), high, source), ")"]


def _peak(curve: StoredResult) -> list[str | Cited]:
    row, metric = peak(curve), score_of(curve)
    which = f"{metric} at layer {row['layer']}"
    ends = _ends(row["low_simultaneous"], row["high_simultaneous"], curve, f"{which}, simultaneous over layers", metric)
    best = Cited(_score(row["value"], metric), float(row["value"]), curve.source("tables/table", which))
    layer = Cited(f"layer {row['layer']}", int(row["layer"]), curve.source("tables/table", which))
    if metric == "r2":
        return ["The best probe, at ", layer, ", explains ", best, *ends, " of the variance (R²). "]
    chance = Cited(percent(row["chance"]), float(row["chance"]), curve.source("tables/table", f"{which}, chance"))
    return ["The best probe, at ", layer, ", has an accuracy of ", best, *ends, "; chance level ", chance, ". "]


def _offset(curve: StoredResult) -> list[str | Cited]:
    if not curve.event("onset")["found"]:
        return []
    event = curve.event("offset")
    source = curve.source("tables/events", "offset")
    if not event["found"]:
        return ["It is still decodable in the ", Cited("last layer", -1, source), "."]
    layer = Cited(f"layer {event['layer']}", int(event["layer"]), source)
    return ["From ", layer, " on", *_layers(event, curve), " it is no longer detected."]


def _advantage(curve: StoredResult, found: StoredResult, results: ResultSet) -> list[str | Cited]:
    over = found.attributes.get("baseline") or {}
    control = str(over.get("task", "")).partition(":")[2]
    metric, row = str(found.table("table")["metric"].iloc[0]), _at_peak(curve, found)
    gained = _gain(found, row, metric)
    event = found.event("onset")
    real: list[str | Cited] = (
        [
            " (significant from ",
            Cited(f"layer {event['layer']}", int(event["layer"]), found.source("tables/events", "onset")),
            " on)",
        ]
        if event["found"]
        else [" (", Cited("in no layer", -1, found.source("tables/events", "onset")), " significantly above 0)"]
    )
    if "of" in over:
        at = f"The advantage over the best baseline of each layer is, at layer {row['layer']}, "
        if event["found"]:
            return [at, *gained, *real, "."]
        none = Cited("no layer", -1, found.source("tables/events", "onset"))
        return [at, *gained, "; it is significant in ", none, ", so there is no evidence beyond the baselines."]
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
        words += [f"With {baseline_label(found)} the same probe scores ", *range_of, " over all layers. "]
    words += [f"At layer {row['layer']} the advantage over {baseline_label(found)} is ", *gained, *real]
    if control:
        return [*words, "."]
    verdict = ": the probe uses information from the image." if event["found"] else ": an advantage from the image is not detected."
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
    source = found.source("tables/table", f"{which}, simultaneous over layers")
    return [
        shown,
        " [",
        Cited(signed(f"{scale * low:.{digits}f}"), low, source),
        ", ",
        Cited(signed(f"{scale * high:.{digits}f}"), high, source),
        "]",
    ]


def _curve_tiles(curve: StoredResult) -> list[Fact]:
    event, row, metric = curve.event("onset"), peak(curve), score_of(curve)
    where = f"{curve.task} {POSITION_WORDS.get(curve.position, curve.position)}".strip()
    onset = Cited(f"layer {event['layer']}" if event["found"] else "none", int(event["layer"]), curve.source("tables/events", "onset"))
    which = f"{metric} at layer {row['layer']}"
    best = Cited(_score(row["value"], metric), float(row["value"]), curve.source("tables/table", which))
    ends = _ends(row["low_simultaneous"], row["high_simultaneous"], curve, f"{which}, simultaneous over layers", metric)
    name = "R² of the best probe" if metric == "r2" else "accuracy of the best probe"
    return [Fact(onset, f"onset of {where}", _layers(event, curve)), Fact(best, f"{name}, layer {row['layer']}", ends)]


def _advantage_tile(curve: StoredResult, found: StoredResult) -> Fact:
    metric = str(found.table("table")["metric"].iloc[0])
    gained = _gain(found, _at_peak(curve, found), metric)
    first = gained[0]
    assert isinstance(first, Cited)
    first = replace(first, text=first.text.removesuffix(" points"))
    over = found.attributes.get("baseline") or {}
    unit = "percentage points" if metric in ("accuracy", "balanced_accuracy") else METRIC_LABELS.get(metric, metric)
    selective = "selectivity: " if ":" in str(over.get("task", "")) else ""
    return Fact(first, f"{selective}{unit} over {baseline_label(found)}", gained[1:])


def _ends(
    low: float, high: float, found: StoredResult, which: str, metric: str = "accuracy", *, table: str = "tables/table"
) -> list[str | Cited]:
    source = found.source(table, which)
    cited = [Cited(_score(end, metric).removesuffix(" %"), float(end), source) for end in (low, high)]
    return [" [", cited[0], ", ", cited[1], "]"]


def _score(value: float, metric: str) -> str:
    return percent(float(value)) if metric in ("accuracy", "balanced_accuracy") else signed(f"{value:.2f}")
