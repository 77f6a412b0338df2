"""The report of a store: all that its results say, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from stratascope.report.blocks import Block, Card, Cards, Missing, Prose, Section
from stratascope.report.example_subsets import part_blocks
from stratascope.report.faithfulness import attribution_blocks, best_method, faithfulness_blocks
from stratascope.report.headline import asked, headline
from stratascope.report.localisation import pointing_blocks
from stratascope.report.page import Page
from stratascope.report.reproduction import provenance
from stratascope.report.sections import attention_blocks, curve_blocks, position_blocks, relation_blocks, remark_blocks
from stratascope.results.collection import Findings
from stratascope.store import ActivationStore, condition_of
from stratascope.store.io.recorded_examples import written_examples


def report_page(store: ActivationStore, findings: Findings, *, command_name: str, title: str = "", cards: Sequence[Card] = ()) -> Page:
    """The page; sections whose results are absent say which command makes them.

    Parameters
    ----------
    store, findings
        A store, and its results as `gather` finds them.
    command_name
        The store as a command would name it.
    title
        Of the page; made from the model and the first task by default.
    cards
        Examples, chosen and drawn.
    """
    given, findings = findings, findings.whole
    layout = store.layout
    made = store.provenance.get("model")
    name = str((made.get("name") if isinstance(made, dict) else made) or "the model")
    model = "the built-in model" if name == "demo" else name.rstrip("/").rpartition("/")[2]
    condition = condition_of(store.provenance)
    model += " with untrained weights" if condition.startswith("untrained") else ""
    answers = Missing(
        "No examples yet, since the model's answers are not among the results; make them with", f"stratascope answers {command_name}"
    )
    examples: list[Block] = [Prose(RULE), Cards(cards)] if cards else [answers]
    sections = [
        Section("What was found", [*headline(findings), *best_method(findings), *remark_blocks(findings)], "found"),
        Section("Layer by layer", curve_blocks(findings, command_name), "curves"),
        Section("Position by layer", position_blocks(findings, command_name), "positions"),
        Section("Which method to believe", faithfulness_blocks(findings, command_name, layout.record), "faithfulness"),
        Section("What points at the things that are named", pointing_blocks(findings, command_name), "pointing"),
        Section("Attention, by part of the prompt and by head", attention_blocks(findings, command_name), "attention"),
        Section("What writes the answer", attribution_blocks(findings, command_name, layout.record), "attribution"),
        Section("By relation", relation_blocks(findings, command_name), "relations"),
        *([Section("Of a part of the examples", parts, "parts")] if (parts := part_blocks(given)) else []),
        Section("Examples", examples, "examples"),
        Section("How to make this again", provenance(store, given), "redo"),
    ]
    return Page(
        title or f"In which layers of {model} {asked(findings)}",
        sections,
        f"{PurePath(store.name).name} · {_extent(store)} · {layout.layers} decoder blocks of {layout.heads} heads · condition {condition}",
        f"Made by Stratascope from {len(given.own) + len(given.beside)} results files; the same files give the same page.",
    )


def _extent(store: ActivationStore) -> str:
    """How many examples the store has, and how many are written where not all are."""
    total, written = store.layout.examples, int(written_examples(store).sum())
    return f"{total:,} examples" if written == total else f"{written:,} of {total:,} examples written"


RULE = (
    "Chosen by rule: of the model's right answers and of its wrong ones three each, or more of one kind where the other has fewer; the "
    "surest, the least sure, and between them an even spread by confidence, of relations not yet shown where there are such. "
    "The tint is the final token's attention in the named block, mean over heads; full tint is the image's largest cell, and the largest "
    "token of the caption."
)
