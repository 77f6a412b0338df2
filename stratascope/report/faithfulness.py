"""Faithfulness of attribution methods and direct logit attribution: their sections of a report."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from stratascope.analysis.knockout_targets import MODE_LABELS, TARGET_LABELS
from stratascope.report.attribution_figures import leading_rows
from stratascope.report.blocks import Beside, Block, Cited, Drawing, Missing, Prose, Table
from stratascope.report.figure_registry import FIGURES
from stratascope.results.collection import Findings

MOST_HEADS = 8


def best_method(findings: Findings) -> list[Block]:
    """One sentence: the method that agrees best with hiding, and whether it is surely ahead of the next."""
    found = findings.of("faithfulness")
    if not found:
        return []
    best = found[0].attributes["leading"]
    source = found[0].source("attributes/leading")
    cited = {name: Cited(f"{best[name]:.2f}", float(best[name]), source) for name in ("correlation", "low", "high")}
    hidden_from = MODE_LABELS.get(best["mode"], best["mode"]).removeprefix("masked ")
    words: list[str | Cited] = [
        "Of the methods that say where the model looks, ",
        Cited(str(best["label"]), str(best["method"]), source),
        f" agrees best with what hiding {TARGET_LABELS.get(best['targets'], best['targets'])} {hidden_from} does: rank correlation ",
        *(cited["correlation"], " [", cited["low"], ", ", cited["high"], "]"),
    ]
    if "second_label" in best:
        ahead = Cited(f"{best['ahead']:.2f}", float(best["ahead"]), source)
        words += ["; it is ", ahead, f" ahead of {best['second_label']}{'' if best['ahead_low'] > 0 else ', which may be chance'}"]
    if best["method"] == "estimate":
        words.append(" (an estimate of that very effect, so that it is no other witness)")
    return [Prose([*words, "."], lead=True)]


def _missing(what: str, command: str, needed: Sequence[str], recorded: Collection[str]) -> Missing:
    """The command that makes a result; before it what an extraction has to record, where the store lacks it."""
    if all(name in recorded for name in needed):
        return Missing(f"{what} not known yet; make it known with", command)
    return Missing(f"{what} not known yet, and this store cannot tell; extract with --record {','.join(needed)}, then", command)


def faithfulness_blocks(findings: Findings, store: str, recorded: Collection[str] = ()) -> list[Block]:
    """Each method's agreement with hiding, best first; `recorded` names what the store holds."""
    found = findings.of("faithfulness")
    if not found:
        needed = ("attention_rows", "attention_maps", "knockout")
        return [_missing("What hiding parts of the prompt does is", f"stratascope faithfulness {store}", needed, recorded)]
    table = leading_rows(found[0])
    best = found[0].attributes["leading"]
    rows = [
        [r["label"], _signed(r["correlation"]), f"{_signed(r['low'])} to {_signed(r['high'])}", _behind(r), int(r["examples"])]
        for _, r in table.iterrows()
    ]
    setting = (
        f"{TARGET_LABELS.get(best['targets'], best['targets'])}, {MODE_LABELS.get(best['mode'], best['mode'])}, blocks {best['window']}"
    )
    blocks: list[Block] = [
        Prose(
            "Parts of the prompt are hidden one by one, and the change of the answer's logits is measured. A method is faithful as far as "
            "it ranks those parts as hiding them does."
        ),
        Drawing(
            FIGURES["faithfulness"].figure(findings, width=6.4, height=0.7 + 0.24 * len(table)),
            "each method's rank correlation with the effect of hiding, with intervals",
            f"Spearman's correlation within an example, mean over examples, 95 % intervals by bootstrap over images. Targets: {setting}.",
            "",
            [found[0].source("tables/methods")],
        ),
        Table(
            ["method", "correlation", "95 % interval", "behind the best", "examples"],
            rows,
            caption=f"{setting[:1].upper()}{setting[1:]}.",
            sources=[found[0].source("tables/methods")],
        ),
    ]
    missing = found[0].attributes.get("missing") or {}
    return [*blocks, *(Prose(f"Not compared: {name}; record {arrays}.") for name, arrays in missing.items())]


def attribution_blocks(findings: Findings, store: str, recorded: Collection[str] = ()) -> list[Block]:
    """What each head writes towards the answer, and the heads that carry most; `recorded` names what the store holds."""
    found = findings.of("logit_attribution")
    if not found:
        needed = ("attention_rows", "head_logits")
        return [_missing("What each head writes is", f"stratascope attribution {store}", needed, recorded)]
    table = found[0].table("heads").sort_values("carried", ascending=False, key=abs, kind="stable").head(MOST_HEADS)
    parts = [name for name in table.columns if name.startswith("support_")]
    rows = []
    for _, r in table.iterrows():
        through = max(parts, key=lambda name: abs(r[name])).removeprefix("support_").replace("_", " ") if parts else "not recorded"
        rows.append(
            [
                f"block {int(r['layer'])}, head {int(r['head'])}",
                f"{r['carried']:+.1%}".replace("%", " %").replace("-", "−"),
                _signed(r["support"]),
                through,
            ]
        )
    first, second = found[0].attributes["choices"][:2]
    return [
        Beside(
            [
                Drawing(
                    FIGURES["carried"].figure(findings, width=4.1, height=2.6),
                    "share of the logit difference's variance that heads and the rest of each block carry, by block",
                    f"Of the variance over examples of logit({first}) − logit({second}).",
                    "Heads, and the rest of each block",
                    [found[0].source("tables/heads"), found[0].source("tables/blocks")],
                ),
                Drawing(
                    FIGURES["writers"].figure(findings, width=4.1, height=2.6),
                    "share of the logit difference's variance that each head carries, heads by decoder blocks",
                    "Orange: towards the answer's logit difference; purple: against it.",
                    "Each head's share",
                    [found[0].source("tables/heads")],
                ),
            ]
        ),
        Table(
            ["head", "of the variance", "logits towards the answer", "most through"],
            rows,
            "The heads that carry most",
            sources=[found[0].source("tables/heads")],
        ),
    ]


def _behind(row: pd.Series[Any]) -> str:
    return "" if row["behind"] == 0 else f"{row['behind']:.2f} [{row['behind_low']:.2f}, {row['behind_high']:.2f}]"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-0.00", "0.00").replace("-", "−")
