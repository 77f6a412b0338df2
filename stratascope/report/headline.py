"""What was found, in plain words: every number in them is cited from a results file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from stratascope.figures.drawing import METRIC_LABELS
from stratascope.report.blocks import Block, Cited, Fact, Facts, Prose
from stratascope.report.figure_selection import advantage_name, score_of
from stratascope.results.collection import Findings
from stratascope.results.view import Found

TASK_WORDS = {
    "truth": "whether the caption is true",
    "relation": "which relation the caption names",
    "answer": "what the model will answer",
    "category": "which kind of relation the caption names",
    "geometry": "where the two things are in the image",
}
POSITION_WORDS = {
    "final": "at the final token",
    "subject": "at the last token of the subject",
    "relation": "at the last token of the relation",
    "object": "at the last token of the object",
    "image": "in the mean over the image's tokens",
    "subject_box": "in the image tokens within the subject's box",
    "object_box": "in the image tokens within the object's box",
}


def task_words(task: str) -> str:
    """What a probe for a task reads, in words; with the choice of examples in brackets behind the name."""
    name, _, chosen = task.partition(" (")
    words = TASK_WORDS.get(name, f"the column “{name}”")
    return f"{words} (only {chosen.removesuffix(')')})" if chosen else words


def headline(findings: Findings) -> list[Block]:
    """Onset, peak and offset in a sentence, tiles, then sentences on what the baselines do and how the model itself does.

    The curve that it speaks of is truth at the final token where there is one, else the first by task and position.
    """
    blocks: list[Block] = []
    tiles: list[Fact] = []
    if findings.curves:
        curve = findings.curves[0]
        blocks.append(Prose([*_onset(curve), *_peak(curve), *_offset(curve)], lead=True))
        tiles += _curve_tiles(curve)
        advantages = findings.advantages_of(curve)
        blocks += [Prose(_advantage(curve, found, findings)) for found in advantages]
        # over all baselines at once is the claim: beside it, those over single ones are for the sentences below
        claims = [found for found in advantages if "of" in (found.attributes.get("baseline") or {})]
        tiles += [_advantage_tile(curve, found) for found in claims or advantages]
    answers = findings.of("answer_confidence")
    if answers:
        row = answers[0].table("confidence").iloc[0]
        source = answers[0].source("tables/confidence", "all relations")
        right = Cited(percent(row["accuracy"]), float(row["accuracy"]), source)
        ends = _ends(row["accuracy_low"], row["accuracy_high"], answers[0], "all relations", table="tables/confidence")
        who = "With untrained weights the model answers " if answers[0].condition.startswith("untrained") else "The model itself answers "
        blocks.append(Prose([who, right, *ends, " of the examples right."]))
        tiles.append(Fact(right, "of the model's answers are right", ends))
    # the answer first, its numbers at a glance, then what they are measured against
    return [*blocks[:1], Facts(tiles), *blocks[1:]] if tiles else blocks


def peak(curve: Found, metric: str | None = None) -> pd.Series[Any]:
    """The row of a curve's best layer; the first of several equal ones."""
    rows = curve.rows(metric or score_of(curve))
    return rows.iloc[int(rows["value"].to_numpy().argmax())]


def signed(number: str) -> str:
    """A number's text with a minus sign in place of a hyphen."""
    return number.replace("-", "−")


def asked(findings: Findings) -> str:
    """What the first curve asks, as the end of "In which layers ..."; in general where there is none."""
    if not findings.curves:
        return "a spatial relation can be read"
    return f"one can read {task_words(findings.curves[0].task)}"


def percent(value: float) -> str:
    """A share as text."""
    return f"{100 * value:.1f} %"


def _onset(curve: Found) -> list[str | Cited]:
    what = task_words(curve.task)
    where = POSITION_WORDS.get(curve.position, f"at {curve.position}" if curve.position else "")
    event = curve.event("onset")
    metric = METRIC_LABELS.get(str(event["metric"]), str(event["metric"]))
    source = curve.source("tables/events", f"onset of {metric} over chance")
    begin = f"{what[:1].upper()}{what[1:]} "
    if not event["found"]:
        return [begin, f"cannot be read {where} in ", Cited("any layer", -1, source), ": no probe does better than chance. "]
    layer = Cited(f"layer {event['layer']}", int(event["layer"]), source)
    return [begin, f"can be read {where} from ", layer, " on", *_layers(event, curve), "; before it no probe does better than chance. "]


def _layers(event: pd.Series[Any], curve: Found) -> list[str | Cited]:
    low, high = int(event["low"]), int(event["high"])
    source = curve.source("tables/events", f"interval of the {event['kind']}")
    if low < 0 or high < 0:
        return []
    level = f"{100 * float(event['level']):.0f} % interval"
    if low == high:
        return [f" ({level}: layer ", Cited(str(low), low, source), " only)"]
    return [f" ({level}: layers ", Cited(str(low), low, source), " to ", Cited(str(high), high, source), ")"]


def _peak(curve: Found) -> list[str | Cited]:
    row, metric = peak(curve), score_of(curve)
    which = f"{metric} at layer {row['layer']}"
    ends = _ends(row["low_simultaneous"], row["high_simultaneous"], curve, f"{which}, simultaneous over layers", metric)
    best = Cited(_score(row["value"], metric), float(row["value"]), curve.source("tables/table", which))
    layer = Cited(f"layer {row['layer']}", int(row["layer"]), curve.source("tables/table", which))
    if metric == "r2":
        return ["At ", layer, ", its best, the probe explains ", best, *ends, " of the variance (R²). "]
    chance = Cited(percent(row["chance"]), float(row["chance"]), curve.source("tables/table", f"{which}, chance"))
    return ["At ", layer, ", its best, a linear probe is right for ", best, *ends, " of the examples; guessing would be for ", chance, ". "]


def _offset(curve: Found) -> list[str | Cited]:
    if not curve.event("onset")["found"]:
        return []
    event = curve.event("offset")
    source = curve.source("tables/events", "offset")
    if not event["found"]:
        return ["It can still be read in the ", Cited("last layer", -1, source), "."]
    layer = Cited(f"layer {event['layer']}", int(event["layer"]), source)
    return ["From ", layer, " on", *_layers(event, curve), " it can no longer be found."]


def _advantage(curve: Found, found: Found, findings: Findings) -> list[str | Cited]:
    over = found.attributes.get("baseline") or {}
    control = str(over.get("task", "")).partition(":")[2]
    metric, row = str(found.table("table")["metric"].iloc[0]), _at_peak(curve, found)
    gained = _gain(found, row, metric)
    event = found.event("onset")
    real: list[str | Cited] = (
        [
            " (more than chance from ",
            Cited(f"layer {event['layer']}", int(event["layer"]), found.source("tables/events", "onset")),
            " on)",
        ]
        if event["found"]
        else [" (", Cited("in no layer", -1, found.source("tables/events", "onset")), " more than chance would give)"]
    )
    if "of" in over:
        at = f"Over the best of its baselines, layer by layer, it is at layer {row['layer']} "
        if event["found"]:
            return [at, *gained, " ahead", *real, ": that much may be claimed."]
        none = Cited("no layer", -1, found.source("tables/events", "onset"))
        return [at, *gained, "; in ", none, " is that more than chance would give, so that nothing may be claimed beyond the baselines."]
    other = findings.controls_of(curve) if control else findings.baselines_of(curve)
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
        words += [f"With {advantage_name(found)} the same probe scores ", *range_of, " over all layers. "]
    words += [f"At layer {row['layer']} the probe is ", *gained, f" above {advantage_name(found)}", *real]
    if control:
        return [*words, "."]
    verdict = ": what it reads comes from the image." if event["found"] else ": what it reads is there without the image."
    return [*words, verdict if over.get("condition") == "blank" else "."]


def _at_peak(curve: Found, found: Found) -> pd.Series[Any]:
    layer = int(peak(curve)["layer"])
    table = found.table("table")
    return table[table["layer"] == layer].iloc[0]


def _gain(found: Found, row: pd.Series[Any], metric: str) -> list[str | Cited]:
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


def _curve_tiles(curve: Found) -> list[Fact]:
    event, row, metric = curve.event("onset"), peak(curve), score_of(curve)
    where = f"{curve.task} {POSITION_WORDS.get(curve.position, curve.position)}".strip()
    onset = Cited(f"layer {event['layer']}" if event["found"] else "none", int(event["layer"]), curve.source("tables/events", "onset"))
    which = f"{metric} at layer {row['layer']}"
    best = Cited(_score(row["value"], metric), float(row["value"]), curve.source("tables/table", which))
    ends = _ends(row["low_simultaneous"], row["high_simultaneous"], curve, f"{which}, simultaneous over layers", metric)
    name = "explained by a linear probe" if metric == "r2" else "right: a linear probe"
    return [Fact(onset, f"onset of {where}", _layers(event, curve)), Fact(best, f"{name} at layer {row['layer']}", ends)]


def _advantage_tile(curve: Found, found: Found) -> Fact:
    metric = str(found.table("table")["metric"].iloc[0])
    gained = _gain(found, _at_peak(curve, found), metric)
    first = gained[0]
    assert isinstance(first, Cited)
    first = replace(first, text=first.text.removesuffix(" points"))
    over = found.attributes.get("baseline") or {}
    unit = "points" if metric in ("accuracy", "balanced_accuracy") else METRIC_LABELS.get(metric, metric)
    selective = "selectivity: " if ":" in str(over.get("task", "")) else ""
    return Fact(first, f"{selective}{unit} above {advantage_name(found)}", gained[1:])


def _ends(low: float, high: float, found: Found, which: str, metric: str = "accuracy", *, table: str = "tables/table") -> list[str | Cited]:
    source = found.source(table, which)
    cited = [Cited(_score(end, metric).removesuffix(" %"), float(end), source) for end in (low, high)]
    return [" [", cited[0], ", ", cited[1], "]"]


def _score(value: float, metric: str) -> str:
    return percent(float(value)) if metric in ("accuracy", "balanced_accuracy") else signed(f"{value:.2f}")
