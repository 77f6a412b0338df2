"""Report of a store: all of its results on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from stratascope.report.attribution_sections import (
    attention_blocks,
    attribution_blocks,
    best_method,
    faithfulness_blocks,
    knockout_blocks,
    lens_blocks,
    localisation_blocks,
)
from stratascope.report.blocks import Block, Card, Cards, ColourScale, CommandLine, Missing, Prose, Section
from stratascope.report.causal_sections import causal_blocks, causal_sentence
from stratascope.report.example_subsets import selection_blocks
from stratascope.report.headline import asked, headline
from stratascope.report.page import Page
from stratascope.report.patch_sections import patch_blocks
from stratascope.report.reproduction import provenance
from stratascope.report.result_set import ResultSet
from stratascope.report.sections import component_blocks, curve_blocks, position_blocks, relation_blocks, remark_blocks, transfer_blocks
from stratascope.report.study_page import study_blocks
from stratascope.store import ActivationStore, condition_of
from stratascope.store.io.recorded_examples import written_examples


def report_page(
    store: ActivationStore,
    results: ResultSet,
    *,
    command_name: str,
    title: str = "",
    cards: Sequence[Card] = (),
    command_line: CommandLine | None = None,
) -> Page:
    """The page; sections without results name the commands that compute them.

    Parameters
    ----------
    store, results
        A store, and its results as of `gather`.
    command_name
        The store as commands name it.
    title
        Title of the page; from the model and the first task by default.
    cards
        Examples.
    command_line
        Turns a result into the command that computes it; without it the page lists no commands.
    """
    given, results = results, results.whole
    layout = store.layout
    made = store.provenance.get("model")
    name = str((made.get("name") if isinstance(made, dict) else made) or "the model")
    model = "the built-in model" if name == "demo" else name.rstrip("/").rpartition("/")[2]
    condition = condition_of(store.provenance)
    model += " with untrained weights" if condition.startswith("untrained") else ""
    answers = Missing(
        "No examples yet, because the answers of the model are missing; make them with", f"stratascope answers {command_name}"
    )
    examples: list[Block] = (
        [Prose(RULE), ColourScale("0", "largest value in the image, or in the caption"), Cards(cards)] if cards else [answers]
    )
    sections = [
        Section("Summary", [*headline(results), *causal_sentence(results), *best_method(results), *remark_blocks(results)], "found"),
        *([Section("Pre-registered study", study, "study")] if (study := study_blocks(results)) else []),
        Section("Probe scores by layer", curve_blocks(results, command_name), "curves"),
        Section("Probe scores by position and layer", position_blocks(results, command_name), "positions"),
        *([Section("Principal components by layer", components, "components")] if (components := component_blocks(results)) else []),
        *([Section("Single image tokens", patches, "patches")] if (patches := patch_blocks(results)) else []),
        *([Section("Transfer to other data sets", transfers, "transfer")] if (transfers := transfer_blocks(results)) else []),
        Section("Encoded and used: interventions", causal_blocks(results, command_name), "causal"),
        *([Section("Knockouts: which tokens read which", knocked, "knockouts")] if (knocked := knockout_blocks(results)) else []),
        *([Section("Logit lens", lens, "lens")] if (lens := lens_blocks(results)) else []),
        Section(
            "Faithfulness: which attribution methods agree with knockouts",
            faithfulness_blocks(results, command_name, layout.record),
            "faithfulness",
        ),
        Section("Localisation on the named objects", localisation_blocks(results, command_name), "pointing"),
        Section("Attention by part of the prompt and by head", attention_blocks(results, command_name), "attention"),
        Section("Direct logit attribution", attribution_blocks(results, command_name, layout.record), "attribution"),
        Section("By relation", relation_blocks(results, command_name), "relations"),
        *([Section("Selections of examples", selections, "selections")] if (selections := selection_blocks(given)) else []),
        Section("Examples", examples, "examples"),
        Section("Reproduce this report", provenance(store, given, command_line), "reproduce"),
    ]
    return Page(
        title or f"In which layers of {model} {asked(results)}",
        sections,
        f"{PurePath(store.name).name} · {_extent(store)} · {layout.layers} decoder blocks of {layout.heads} heads · condition {condition}",
        f"Made by Stratascope from {len(given.own) + len(given.beside)} results files; the same files give the same page.",
    )


def _extent(store: ActivationStore) -> str:
    """Number of examples of the store, and of those written where not all are."""
    total, written = store.layout.examples, int(written_examples(store).sum())
    return f"{total:,} examples" if written == total else f"{written:,} of {total:,} examples written"


RULE = (
    "Three correct and three wrong answers, or more of one kind if the other has fewer: the most confident, the least confident, and "
    "an even spread by confidence between them, preferring relations not yet shown. "
    "Colour: attention of the final token in the named block, mean over heads."
)
