"""Sections of a report on attribution: knockout effects, faithfulness, localisation, attention, logit attribution."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

from stratascope.analysis.knockout_targets import TARGET_LABELS, setting_text
from stratascope.analysis.logit_lens import MEASURES
from stratascope.figures.attributions import AGAINST
from stratascope.figures.drawing import PART_LABELS
from stratascope.report.blocks import Beside, Block, Cited, Drawing, Folded, Interval, Missing, Prose, Table
from stratascope.report.figure_registry import FIGURES
from stratascope.report.headline import percent
from stratascope.report.result_set import ResultSet

MOST_HEADS = 8
KINDS = {"spans": "parts", "cells": "cells"}
NOT_RANKED = {"baseline": " (baseline)", "reference": " (reference)"}
WIDE, HALF = 6.4, 4.1
"""Inches of a figure over the page's width, and of one beside another."""


def best_method(results: ResultSet) -> list[Block]:
    """One sentence: the method that agrees best with knockouts in the setting fixed beforehand, beside the next and the baselines."""
    found = results.of("faithfulness")
    if not found:
        return []
    best = found[0].attributes["leading"]
    source = found[0].source("attributes/leading")
    cited = {name: Cited(f"{best[name]:.2f}", float(best[name]), source) for name in ("correlation", "low", "high")}
    words: list[str | Cited] = [
        "Of the attribution methods, ",
        Cited(str(best["label"]), str(best["method"]), source),
        f" agrees best with attention knockouts of {setting_text(best)}, the setting fixed beforehand: rank correlation ",
        *(cited["correlation"], " [", cited["low"], ", ", cited["high"], "]"),
    ]
    for name, other in (("ahead", best.get("second_label")), ("over_baseline", best.get("baseline_label"))):
        if other:
            significant = "" if best[f"{name}_low"] > 0 else " (not significant)"
            words += [", ", Cited(f"{best[name]:.2f}", float(best[name]), source), f" more than {other}{significant}"]
    return [Prose([*words, "."], lead=True)]


def _missing(what: str, command: str, needed: Sequence[str], recorded: Collection[str]) -> Missing:
    """The command that computes a result, and before it the arrays that an extraction must record."""
    if all(name in recorded for name in needed):
        return Missing(f"No {what} yet; make it with", command)
    return Missing(f"No {what} yet, and the store lacks arrays for it; extract with --record {','.join(needed)}, then", command)


def knockout_blocks(results: ResultSet) -> list[Block]:
    """Knockout effect by reading tokens, target and window of blocks; empty without such a result."""
    found = results.of("knockout_effects")
    if not found:
        return []
    result, level = found[0].result, f"{found[0].attributes['level']:.0%}"
    return [
        Prose(
            "A target is masked for one group of reading tokens in a window of blocks, and the change of the logit difference towards the "
            f"model's answer is measured (mean size without masking: {result.attributes['difference']:.2f})."
        ),
        Drawing(
            result.figure(),
            "change of the logit difference by window of blocks, one panel per group of reading tokens",
            f"Mean over {len(result.examples)} examples; {level} bands from a bootstrap over images, simultaneous over the windows "
            "of each target; none where too few images decide its effects. Below 0: the target supports the answer through these "
            "tokens and blocks.",
            "",
            [found[0].source("tables/table")],
        ),
    ]


def faithfulness_blocks(results: ResultSet, store: str, recorded: Collection[str] = ()) -> list[Block]:
    """Rank correlation of each method with the knockout effect in the leading setting, and the highest method of every setting.

    `recorded` names the arrays of the store.
    """
    found = results.of("faithfulness")
    if not found:
        needed = ("attention_rows", "attention_maps", "knockout")
        return [_missing("comparison of attribution methods with knockouts", f"stratascope faithfulness {store}", needed, recorded)]
    result = found[0].result
    table, best, level = result.leading_rows, result.best, f"{result.attributes['level']:.0%}"
    rows = [
        [
            f"{r['label']}{NOT_RANKED.get(r['role'], '')}",
            _signed(r["correlation"]),
            f"{_signed(r['low'])} to {_signed(r['high'])}",
            _behind(r) if r["role"] != "reference" else "not ranked",
            int(r["examples"]),
        ]
        for r in table.to_dict("records")
    ]
    settings = [
        [
            KINDS.get(r["targets"], r["targets"]),
            r["mode"],
            r["window"],
            f"{r['effect_size']:.3f}",
            r["label"],
            f"{r['correlation']:.2f} [{r['low']:.2f}, {r['high']:.2f}]",
            f"{r['ahead']:.2f} [{r['ahead_low']:.2f}, {r['ahead_high']:.2f}]" if r["second_label"] else "",
            _signed(r["reference"]) if r["reference"] == r["reference"] else "",
        ]
        for r in result.by_setting.to_dict("records")
    ]
    source = [found[0].source("tables/methods")]
    blocks: list[Block] = [
        Prose(
            "Attention to parts of the prompt is knocked out, one part at a time, and the change of the answer's logit difference is "
            "measured. A method is faithful if it ranks the parts as the knockout effects do. The leading setting is fixed beforehand: "
            f"{setting_text(best)}. The estimated knockout effect approximates the measured quantity itself; it is a reference and not "
            "ranked."
        ),
        Drawing(
            FIGURES["faithfulness"].figure(results, width=WIDE, height=0.7 + 0.24 * len(table)),
            "rank correlation of each method with the knockout effect, with 95 % intervals",
            f"Spearman correlation within an example, mean over examples; {level} CI from a bootstrap over images. Knockout: "
            f"{TARGET_LABELS[best['targets']]} in blocks {best['window']}. Hollow marks: the reference.",
            "",
            source,
        ),
        Table(
            ["method", "correlation", f"{level} CI", "below the highest", "examples"],
            rows,
            caption=f"Knockout: {setting_text(best)}. CI: pointwise. Below the highest: paired difference, {level} CI "
            "simultaneous over all pairs.",
            sources=source,
        ),
        Table(
            ["targets", "masked for", "blocks", "effect (logits)", "highest method", "correlation", "above the next", "reference"],
            settings,
            caption="Highest method of every setting, the leading one first: parts of the prompt or image cells, masked for the final "
            f"or for all later tokens. Effect: mean magnitude for one target. Intervals: {level} CI, simultaneous over the methods of a "
            "setting. A method without scores by block is marked “all blocks” where the knockout is in a window.",
            sources=source,
        ),
    ]
    missing = result.attributes.get("missing") or {}
    return [*blocks, *(Prose(f"Not compared: {name}; record {arrays}.") for name, arrays in missing.items())]


def localisation_blocks(results: ResultSet, store: str) -> list[Block]:
    """Ratio of each method's score on the named objects to its score elsewhere."""
    found = results.of("pointing")
    if not found:
        return [Missing("No localisation of attribution methods yet; make it with", f"stratascope pointing {store} --boxes instances.json")]
    result = found[0].result
    table, beside = result.table, result.against
    rows = [
        [r["label"], f"{r[f'over_{beside}']:.3g}", _ratio_ends(r[f"over_{beside}_low"], r[f"over_{beside}_high"]), f"{r['wins']:.0%}"]
        for r in table.to_dict("records")
    ]
    source = [found[0].source("tables/methods")]
    return [
        Prose(
            f"The ratio compares a method's score on image cells of the subject and object with its score on cells of {AGAINST[beside]}. "
            "At 1 the method does not distinguish them."
        ),
        Drawing(
            FIGURES["pointing"].figure(results, width=WIDE, height=0.7 + 0.24 * len(table)),
            f"score of each method on cells of the named objects over that on cells of {AGAINST[beside]}, with 95 % intervals",
            "Mean absolute score of a cell over examples; 95 % CI by bootstrap-t over images. Measured: knockout effects.",
            "",
            source,
        ),
        Table(
            ["method", f"named objects over {AGAINST[beside]}", "95 % CI", "examples above 1"],
            rows,
            caption=f"{int(table['examples'].max())} examples.",
            sources=source,
        ),
    ]


def attention_blocks(results: ResultSet, store: str) -> list[Block]:
    """Attention share by part of the prompt and by head; overlap with the gold boxes by head."""
    shares = results.of("attention_share")
    if not shares:
        return [Missing("No attention shares yet; make them with", f"stratascope share {store}")]
    found = shares[0]
    parts, layers = found.attributes["parts"], found.attributes["layers"]
    tokens, means = found.file.arrays["token_share"][1], found.means("share").mean(1)
    top = [int(means[:, k].argmax()) for k in range(len(parts))]
    rows = [
        [PART_LABELS.get(name, name), *map(percent, (tokens[:, k].mean(), means[:, k].mean(), means[top[k], k])), int(layers[top[k]])]
        for k, name in enumerate(parts)
    ]
    return [
        Beside(
            [
                Drawing(
                    FIGURES["parts"].figure(results, width=HALF, height=2.6),
                    "attention share of the final token by part of the prompt, stacked, by decoder block",
                    "Mean over examples and heads. Attention is not information flow: see the section on faithfulness.",
                    "Attention share by part of the prompt",
                    [found.source("arrays/share")],
                ),
                Drawing(
                    FIGURES["heads"].figure(results, width=HALF, height=2.6),
                    "attention share of the image, heads by decoder blocks",
                    "The mean over heads hides single heads that attend to the image alone.",
                    "Attention share of the image by head",
                    [found.source("arrays/share")],
                ),
            ]
        ),
        *_overlap(results),
        Table(
            ["part of the prompt", "share of tokens", "attention share", "highest share of a block", "block"],
            rows,
            caption="Means over examples and heads.",
            sources=[
                found.source("arrays/share", "mean over examples and heads"),
                found.source("arrays/token_share", "mean over examples"),
            ],
        ),
    ]


def _overlap(results: ResultSet) -> list[Block]:
    found = [f for f in results.of("box_overlap") if f.attributes["heads"] != [-1]]
    if not found:
        return []
    return [
        Drawing(
            FIGURES["overlap"].figure(results, width=HALF, height=2.6),
            "overlap of each head's attention on the image with the boxes of subject and object, heads by decoder blocks",
            "Mean over the examples with known boxes.",
            "Overlap of each head's attention with the gold boxes",
            [found[0].source("arrays/overlap")],
        )
    ]


def attribution_blocks(results: ResultSet, store: str, recorded: Collection[str] = ()) -> list[Block]:
    """Direct logit attribution by block and head, and the heads with the largest share; `recorded` names the arrays of the store."""
    found = results.of("logit_attribution")
    if not found:
        needed = ("attention_rows", "head_logits")
        return [_missing("logit attribution", f"stratascope attribution {store}", needed, recorded)]
    table = found[0].table("heads").sort_values("carried", ascending=False, key=abs, kind="stable").head(MOST_HEADS)
    parts = [name for name in table.columns if name.startswith("support_")]
    rows = []
    for _, r in table.iterrows():
        part = max(parts, key=lambda name: abs(r[name])).removeprefix("support_") if parts else ""
        rows.append(
            [
                f"block {int(r['layer'])}, head {int(r['head'])}",
                f"{r['carried']:+.1%}".replace("%", " %").replace("-", "−"),
                _signed(r["support"]),
                PART_LABELS.get(part, part) or "not recorded",
            ]
        )
    first, second = found[0].attributes["choices"][:2]
    return [
        Beside(
            [
                Drawing(
                    FIGURES["carried"].figure(results, width=HALF, height=2.6),
                    "share of the variance of the logit difference by decoder block: heads, and the rest of the block",
                    f"Share of the variance over examples of logit({first}) − logit({second}).",
                    "Logit attribution by block",
                    [found[0].source("tables/heads"), found[0].source("tables/blocks")],
                ),
                Drawing(
                    FIGURES["writers"].figure(results, width=HALF, height=2.6),
                    "share of the variance of the logit difference, heads by decoder blocks",
                    "Orange: the head varies with the logit difference; purple: against it.",
                    "Logit attribution by head",
                    [found[0].source("tables/heads")],
                ),
            ]
        ),
        Table(
            ["head", "share of variance", "logits towards the answer given", "largest part of the prompt"],
            rows,
            "Heads with the largest share",
            sources=[found[0].source("tables/heads")],
        ),
    ]


def _ratio_ends(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}" if low == low else "too few images"


def _behind(row: Mapping[Hashable, Any]) -> str:
    return "" if row["behind"] == 0 else f"{row['behind']:.2f} [{row['behind_low']:.2f}, {row['behind_high']:.2f}]"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-0.00", "0.00").replace("-", "−")


def lens_blocks(results: ResultSet) -> list[Block]:
    """Logit lens: the figure of each result, its numbers by layer folded; empty without any."""
    blocks: list[Block] = []
    for found in results.of("logit_lens"):
        result = found.result
        rows = [
            [row["position"], MEASURES[row["measure"]], int(row["layer"]), Interval(row["value"], row["low"], row["high"]), row["baseline"]]
            for row in result.table.to_dict("records")
        ]
        level = f"{result.attributes['level']:.0%}"
        blocks += [
            Prose("The residual stream of each layer, decoded by the model's own final norm and unembedding as if it were the last."),
            Drawing(
                result.figure(),
                "share of examples that the logit lens decodes rightly by layer, beside the probe; likeliest relation word by layer",
                f"{'. '.join(result.summary().splitlines())}. Bands: {level} simultaneous over layers, bootstrap over images.",
                "",
                [found.source("tables/table")],
            ),
            Folded(
                "Logit lens: table",
                [
                    Table(
                        ["position", "measure", "layer", f"share, {level} CI", "most frequent"],
                        rows,
                        sources=[found.source("tables/table")],
                    )
                ],
            ),
        ]
    return blocks
